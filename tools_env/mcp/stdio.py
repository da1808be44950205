"""A server as a process of ours: a transport of the SDK, with bounds on what the server writes.

The SDK's own reads a line of any length into memory, and cannot end what a server leaves behind when this
process is killed.
"""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import anyio
from mcp.client.stdio import get_default_environment
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter

from tools_env.mcp import supervisor
from tools_env.mcp.settings import McpSettings

#: Most bytes of one message: four images of 4 MB, in base64, and room.
MAX_MESSAGE = 32 << 20
#: Lines that are no messages (prints) before the server is given up.
MAX_STRAY_LINES = 100
#: Seconds in which a server ends by itself once its input is closed.
LEAVE_S = 1.0
#: Seconds for the exit code to be known once its output has ended.
EXIT_S = 0.5
#: Seconds in which whatever is left has been killed, on a busy machine.
KILLED_S = 4.0
_MAX_WORDS = 2_000


class StdioServer:
    """A server's process, and why it can no longer be talked to.

    Args:
        settings: Command and environment.

    Attributes:
        fault: What ended the connection, "" while it is sound.
        words: The end of what it wrote to standard error.
    """

    def __init__(self, settings: McpSettings) -> None:
        self._settings = settings
        self._process: asyncio.subprocess.Process | None = None
        self._lifeline = -1
        self.fault = ""
        self.words = ""

    @contextlib.asynccontextmanager
    async def transport(self) -> AsyncGenerator[tuple[object, object], None]:
        """Start the process; give the streams that the SDK's client takes; end it.

        Raises:
            OSError: If it cannot be started.
        """
        process = await self._start()
        to_session, incoming = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        outgoing, from_session = anyio.create_memory_object_stream[SessionMessage](0)
        try:
            async with anyio.create_task_group() as tasks, incoming, outgoing:
                tasks.start_soon(self._read, process, to_session)
                tasks.start_soon(self._write, process, from_session)
                tasks.start_soon(self._listen, process)
                try:
                    yield incoming, outgoing
                finally:
                    tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await self._leave(process)

    def kill(self) -> None:
        """End the process and all that it started, whatever the event loop does; may be called again."""
        lifeline, self._lifeline = self._lifeline, -1
        if lifeline >= 0:
            os.close(lifeline)

    async def _start(self) -> asyncio.subprocess.Process:
        settings = self._settings
        own = {name: os.environ[name] for name in settings.env_vars if name in os.environ}
        reading, self._lifeline = os.pipe()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(Path(supervisor.__file__)), str(reading)),
                *(settings.command, *settings.args),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=get_default_environment() | own,
                cwd=settings.cwd,
                pass_fds=(reading,),
                start_new_session=True,
                limit=MAX_MESSAGE,
            )
        finally:
            os.close(reading)
        return self._process

    async def _read(self, process: asyncio.subprocess.Process, session: anyio.abc.ObjectSendStream) -> None:
        """Hand over the server's messages, until it ends or writes what no server may."""
        assert process.stdout is not None
        stray = 0
        async with session:
            while True:
                try:
                    line = await process.stdout.readuntil()
                except asyncio.IncompleteReadError as error:
                    await _ended(process, EXIT_S)
                    self.fault = f"the server ended with exit code {process.returncode}"
                    if error.partial.strip():
                        self.fault += f", in the middle of a message: {error.partial[:100]!r}"
                    return
                except asyncio.LimitOverrunError:
                    self.fault = f"wrote a message of more than {MAX_MESSAGE >> 20} MiB"
                    return
                try:
                    message = jsonrpc_message_adapter.validate_json(line, by_name=False)
                except ValueError:
                    stray += 1
                    if stray > MAX_STRAY_LINES or b'"jsonrpc"' in line:
                        self.fault = f"writes what is no message to its standard output: {line[:100]!r}"
                        return
                    continue
                try:
                    await session.send(SessionMessage(message))
                except (anyio.ClosedResourceError, anyio.BrokenResourceError):
                    return

    async def _write(
        self, process: asyncio.subprocess.Process, session: anyio.abc.ObjectReceiveStream
    ) -> None:
        """Send the session's messages to the server; what it does not read any more is seen by `_read`."""
        assert process.stdin is not None
        async with session:
            async for each in session:
                text = each.message.model_dump_json(by_alias=True, exclude_unset=True)
                with contextlib.suppress(OSError):
                    process.stdin.write(text.encode("utf-8", "replace") + b"\n")
                    await process.stdin.drain()

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        """Keep the end of what the server says to its standard error."""
        assert process.stderr is not None
        while said := await process.stderr.read(1 << 16):
            self.words = (self.words + said.decode("utf-8", "replace"))[-_MAX_WORDS:]

    async def _leave(self, process: asyncio.subprocess.Process) -> None:
        """Close the server's input, wait a moment, and kill what is left of it."""
        assert process.stdin is not None
        process.stdin.close()
        await _ended(process, LEAVE_S)
        self.kill()
        await _ended(process, KILLED_S)
        # What was not read is let go of; else its buffer stays until it is collected.
        getattr(process, "_transport").close()  # noqa: B009  # nothing public closes it


async def _ended(process: asyncio.subprocess.Process, seconds: float) -> None:
    """Wait for a process to end, for some time; `process.wait` would wait for its pipes as well."""
    until = time.monotonic() + seconds
    while process.returncode is None and time.monotonic() < until:
        await asyncio.sleep(0.01)
