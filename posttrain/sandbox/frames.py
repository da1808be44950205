"""Messages over a pipe: a JSON header and a body of bytes, both with their lengths before them."""

import json
import os
import select
import struct
import time
from collections.abc import Mapping
from typing import Any, TypeAlias

#: The JSON part of a message: a job, or how it ended.
Header: TypeAlias = dict[str, Any]
#: A header or body larger than this is an error.
MAX_BYTES = 1 << 26
_LONGEST_POLL_S = 3600.0
_LENGTHS = struct.Struct("<II")


def send(descriptor: int, header: Mapping[str, object], body: bytes = b"") -> None:
    """Write one message.

    Raises:
        OSError: If nobody reads any more.
    """
    head = json.dumps(header).encode()
    data = memoryview(_LENGTHS.pack(len(head), len(body)) + head + body)
    while data:
        data = data[os.write(descriptor, data) :]


def receive(descriptor: int, deadline: float) -> tuple[Header, bytes]:
    """Read one message.

    Args:
        descriptor: The pipe.
        deadline: Moment on the clock of `time.monotonic` until which to wait.

    Raises:
        EOFError: If the other side has ended.
        TimeoutError: If the deadline passes first.
        ValueError: If this is no message.
    """
    head_length, body_length = _LENGTHS.unpack(_read(descriptor, _LENGTHS.size, deadline))
    if max(head_length, body_length) > MAX_BYTES:
        raise ValueError("the message is too large")
    head = _read(descriptor, head_length, deadline)
    return json.loads(head), _read(descriptor, body_length, deadline)


def _read(descriptor: int, count: int, deadline: float) -> bytes:
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    parts: list[bytes] = []
    while count:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("no answer in time")
        if not waiting.poll(min(left, _LONGEST_POLL_S) * 1000):
            continue
        part = os.read(descriptor, min(count, 1 << 20))
        if not part:
            raise EOFError("the other side has ended")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
