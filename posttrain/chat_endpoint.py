"""Asking a model behind an OpenAI-compatible endpoint: bounded, patient, and never guessing.

Whatever may pass is tried again, with growing pauses, until the attempts or the time run out; then it is an
error, and never an answer.
"""

import asyncio
import base64
import email.utils
import functools
import hashlib
import io
import json
import random
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import httpx

from posttrain.files.strict_json import JsonError, parse_json
from posttrain.media.images import open_image
from posttrain.types import ImageRef

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 60.0

T = TypeVar("T")


class BadReply(ValueError):
    """A reply that cannot be used; another attempt may bring a better one."""


class ChatError(RuntimeError):
    """There was no usable reply; the message has the last reason."""


class RefusedError(ChatError):
    """The endpoint refused the request, and would again.

    Attributes:
        status: Its HTTP status.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class _Failure(Exception):
    """One attempt failed and another may succeed.

    Attributes:
        wait_s: Seconds that the endpoint asked to be left alone.
    """

    def __init__(self, reason: str, wait_s: float = 0.0):
        super().__init__(reason)
        self.wait_s = wait_s


@dataclass(frozen=True)
class Completion:
    """What a model wrote.

    Attributes:
        text: Its text; thinking that the server took out stands before it again, as <think>…</think>.
        truncated: Whether it was cut off at the token limit.
    """

    text: str
    truncated: bool = False


class ChatClient:
    """One endpoint, within one event loop.

    Args:
        label: What messages call it, such as "endpoint 'teacher' (http://127.0.0.1:8000/v1)".
        url: Its address up to and including /v1.
        key: The bearer token; "" for none.
        timeout_s: Seconds for one attempt. A reply gets `max_attempts` times as many, pauses included.
        max_attempts: Attempts for one reply.
        concurrency: Requests at once; others wait.
        max_reply_bytes: Longer replies are not read.

    Example:
        reply = await client.ask(lambda: (json.dumps(body).encode(), read_completion))
    """

    def __init__(
        self,
        label: str,
        url: str,
        key: str = "",
        *,
        timeout_s: float,
        max_attempts: int,
        concurrency: int,
        max_reply_bytes: int,
    ):
        self._label, self._url, self._key = label, f"{url}/chat/completions", key
        self._timeout_s, self._max_attempts = timeout_s, max_attempts
        self._max_reply_bytes = max_reply_bytes
        self._slots = asyncio.Semaphore(concurrency)
        address = httpx.URL(url)
        self._http = httpx.AsyncClient(
            timeout=None,  # noqa: S113 (each attempt as a whole has a time limit)
            limits=httpx.Limits(max_connections=concurrency),
            follow_redirects=False,
            verify=_certificates() if address.scheme == "https" else True,
            # Proxies of the environment are for the outside world.
            trust_env=address.host not in ("localhost", "127.0.0.1", "::1"),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def ask(self, prepare: Callable[[], tuple[bytes, Callable[[bytes], T]]]) -> T:
        """Ask with growing pauses, until an attempt succeeds or the attempts or the time run out.

        Args:
            prepare: Makes an attempt's request, and what reads the reply to it: a `BadReply` of the latter
                makes another attempt. Runs in a thread once the request may be sent, so that what it holds
                (images, say) is bounded as the requests are.

        Raises:
            RefusedError: If the endpoint refused the request.
            ChatError: If there was no usable reply in time.
        """
        async with self._slots:
            return await self._insist(prepare)

    async def _insist(self, prepare: Callable[[], tuple[bytes, Callable[[bytes], T]]]) -> T:
        clock = asyncio.get_running_loop().time
        give_up = clock() + self._timeout_s * self._max_attempts
        attempt = 0
        while True:
            attempt += 1
            body, read = await asyncio.to_thread(prepare)
            try:
                async with asyncio.timeout_at(min(clock() + self._timeout_s, give_up)):
                    return read(await self._attempt(body))
            except TimeoutError:
                failure = _Failure(f"no reply within {self._timeout_s:g} s")
            except httpx.RequestError as error:
                failure = _Failure(str(error) or type(error).__name__)
            except BadReply as error:
                failure = _Failure(str(error))
            except _Failure as error:
                failure = error
            # Whoever was refused at the same moment must not come back at the same moment.
            jitter = random.uniform(0.5, 1.5) * min(FIRST_PAUSE_S * 2 ** (attempt - 1), LONGEST_PAUSE_S)
            pause = failure.wait_s + jitter
            if attempt >= self._max_attempts or clock() + pause >= give_up:
                raise ChatError(
                    f"{self._label} gave no answer in {attempt} attempts; the last: {failure}"
                ) from None
            del body, read  # another's request may be in memory meanwhile
            await asyncio.sleep(pause)

    async def _attempt(self, body: bytes) -> bytes:
        """Send one request; return the body of a successful reply."""
        # Not compressed: a reply of a megabyte must not become one of a gigabyte.
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        async with self._http.stream("POST", self._url, content=body, headers=headers) as response:
            reply = bytearray()
            async for piece in response.aiter_raw():
                reply += piece
                if len(reply) > self._max_reply_bytes:
                    raise _Failure(f"the reply is larger than {self._max_reply_bytes:,} bytes")
        if response.is_success:
            return bytes(reply)
        status = response.status_code
        said = " ".join(reply.decode(errors="replace").replace(self._key or "\0", "…").split())[:300]
        if status in (408, 425, 429) or response.is_server_error:
            raise _Failure(f"{status}: {said}", retry_after(response.headers.get("retry-after", "")))
        raise RefusedError(f"{self._label} refused the request: {status}: {said}", status)


def read_completion(reply: bytes) -> Completion:
    """Read what the model wrote, of a chat completion.

    Raises:
        BadReply: If it is none.
    """
    try:
        choice = parse_json(reply.decode())["choices"][0]
        message = choice["message"]
        content, finish = message.get("content"), choice.get("finish_reason")
        thinking = message.get("reasoning_content") or message.get("reasoning")
    except (UnicodeDecodeError, JsonError, KeyError, IndexError, TypeError, AttributeError):
        raise BadReply(f"the reply is no chat completion: {reply[:200].decode(errors='replace')!r}") from None
    if not isinstance(content, str) and not (content is None and isinstance(thinking, str)):
        raise BadReply("the chat completion has no text")
    text = content or ""
    if isinstance(thinking, str) and "</think>" not in text:
        text = f"<think>\n{thinking.strip()}\n</think>\n\n{text.strip()}"
    return Completion(text, truncated=finish == "length")


def data_url(image: ImageRef, max_pixels: int, quality: int = 95, subsampling: int = 0) -> str:
    """Encode an image as a JPEG in base64, made smaller where it has too many pixels.

    Args:
        image: The image.
        max_pixels: Most pixels that are sent.
        quality: Of the JPEG, up to 95.
        subsampling: Of its colours: 0 keeps every pixel's, 2 those of every fourth.

    Raises:
        ImageError: If it cannot be read.
    """
    picture = open_image(image.path)
    if (shrink := (max_pixels / (picture.width * picture.height)) ** 0.5) < 1:
        width, height = (max(1, int(side * shrink)) for side in picture.size)
        picture = picture.resize((width, height))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=quality, subsampling=subsampling)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def retry_after(value: str) -> float:
    """Read the seconds to wait from `Retry-After`, a number or a date; 0 where it says nothing."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value.strip()).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return max(0.0, seconds) if seconds < float("inf") else 0.0


def digest(material: object) -> str:
    """Hash a JSON value with SHA-256, alike for equal values; by it answers are found again."""
    text = json.dumps(material, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Read the certificates, once, since that takes longer than a request."""
    return httpx.create_ssl_context()
