"""A connection to an MCP server by the official SDK, held for one episode; needs the extra `mcp`."""

import asyncio
import contextlib
import importlib.metadata
import json
import threading
from collections.abc import AsyncGenerator
from typing import Any

import httpx2
import mcp
from mcp.client.streamable_http import streamable_http_client
from mcp_types import INVALID_PARAMS, Implementation
from pydantic import ValidationError

from posttrain.failures import WorldError
from posttrain.files.strict_json import JsonObject
from tools_env.mcp.settings import McpSettings
from tools_env.mcp.stdio import MAX_MESSAGE, StdioServer
from tools_env.sdk import ToolError

#: Most tools of a server, and most pages in which it lists them.
MAX_TOOLS, MAX_PAGES = 500, 100
#: Seconds in which a connection is closed in good order.
CLOSE_S = 7.0


class Connection:
    """A connection, held open by a task of its own: what that task has entered, no other can leave.

    Args:
        settings: How to reach the server.
    """

    def __init__(self, settings: McpSettings) -> None:
        self._settings = settings
        self._stdio = StdioServer(settings) if settings.command else None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._client: mcp.Client | None = None
        self._leave = asyncio.Event()
        self._over = threading.Event()
        self._error: BaseException | None = None

    async def open(self) -> list[JsonObject]:
        """Connect; return the server's tools as it lists them.

        Raises:
            WorldError: If that fails.
        """
        self._loop = asyncio.get_running_loop()
        opened: asyncio.Future[None] = self._loop.create_future()
        self._task = self._loop.create_task(self._hold(opened))
        self._task.add_done_callback(lambda _: self._over.set())
        try:
            await asyncio.wait({opened, self._task}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._task.cancel()
            raise
        if not opened.done():
            raise self._failure(self._error)
        return await self.tools()

    async def tools(self) -> list[JsonObject]:
        """Ask for the server's tools, page by page.

        Raises:
            WorldError: If it does not tell, or there is no end of them.
        """
        listed: list[JsonObject] = []
        cursor: str | None = None
        for _ in range(MAX_PAGES):
            page = await self._asked(self._ready().list_tools(cursor=cursor))
            listed += [_plain(tool) for tool in page.tools]
            cursor = page.next_cursor
            if len(listed) > MAX_TOOLS:
                break
            if cursor is None:
                return listed
        raise WorldError(f"the server lists more than {MAX_TOOLS} tools, or does not come to their end")

    async def call(self, name: str, arguments: JsonObject) -> JsonObject:
        """Call a tool; return its result as it is on the wire.

        Raises:
            ToolError: If the server says that the arguments are wrong, of a tool that it still has.
            WorldError: If it does not answer as a server must.
        """
        try:
            return _plain(await self._asked(self._ready().call_tool(name, arguments)))
        except WorldError as error:
            cause = error.__cause__
            if not (isinstance(cause, mcp.MCPError) and cause.code == INVALID_PARAMS):
                raise
            if name not in [tool.get("name") for tool in await self.tools()]:
                raise WorldError(f"the server has no tool {name!r} any more") from error
            raise ToolError(cause.message) from error

    def close(self) -> None:
        """Close the connection from any thread, and end the server's process whatever happens."""
        loop, task = self._loop, self._task
        try:
            if loop is not None and task is not None and not self._over.is_set():
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(self._leave.set if self._client is not None else task.cancel)
                    if not self._over.wait(CLOSE_S):
                        loop.call_soon_threadsafe(task.cancel)
                        self._over.wait(1.0)
        finally:
            if self._stdio is not None:
                self._stdio.kill()

    async def _hold(self, opened: "asyncio.Future[None]") -> None:
        """Open the connection, and close it when it is asked to."""
        transport = self._stdio.transport() if self._stdio is not None else _http(self._settings)
        client: Any = mcp.Client(
            transport,  # pyright: ignore[reportArgumentType]  # as the context manager that it is
            client_info=Implementation(name="posttrain", version=importlib.metadata.version("posttrain")),
            cache=None,
        )
        try:
            async with client:
                # Results are checked in `results`, in bounded time and off the loop of all sessions.
                client.session.validate_tool_result = _unchecked
                self._client = client
                if not opened.done():
                    opened.set_result(None)
                await self._leave.wait()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._error = error
        finally:
            self._client = None

    def _ready(self) -> mcp.Client:
        if self._client is None or asyncio.get_running_loop() is not self._loop:
            raise self._failure(self._error)
        return self._client

    async def _asked(self, asking: Any) -> Any:
        """Wait for an answer, or for the end of the connection."""
        assert self._task is not None
        answer = asyncio.ensure_future(asking)
        try:
            await asyncio.wait({answer, self._task}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise self._failure(self._error)
            return answer.result()
        except (mcp.MCPError, ValidationError, RuntimeError, httpx2.HTTPError) as error:
            raise self._failure(error) from error
        finally:
            answer.cancel()

    def _failure(self, error: BaseException | None) -> WorldError:
        """Say how the connection failed, with the server's last words."""
        stdio = self._stdio
        reasons = [stdio.fault] if stdio is not None and stdio.fault else _told(error)
        if stdio is not None and stdio.words.strip():
            reasons.append(f"its last words: {' '.join(stdio.words.split())[-200:]}")
        return WorldError(f"MCP server {self._settings.mcp!r}: {'; '.join(reasons)}")


async def _unchecked(name: str, result: object) -> None:
    """Take a result as it is."""


@contextlib.asynccontextmanager
async def _http(settings: McpSettings) -> AsyncGenerator[Any, None]:
    """Connect to a server by streamable HTTP, with bounds on what it sends."""
    timeout = httpx2.Timeout(30.0, read=max(settings.startup_timeout_s, settings.tool_timeout_s) + 30.0)
    headers = {"Accept-Encoding": "identity"} | settings.headers  # what is packed could unpack to any size
    hooks = {"response": [_bound]}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=timeout, event_hooks=hooks) as client,
        streamable_http_client(settings.url, http_client=client, max_sse_event_size=MAX_MESSAGE) as streams,
    ):
        yield streams


async def _bound(response: httpx2.Response) -> None:
    """Have an answer cut off at the size of a message, before its body is read."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise httpx2.ProtocolError("the answer is compressed, which it was asked not to be")
    response.stream = _Bounded(response.stream)


class _Bounded(httpx2.AsyncByteStream):
    """The body of an answer, up to a size."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        left = MAX_MESSAGE
        async for piece in self._stream:
            left -= len(piece)
            if left < 0:
                raise httpx2.ReadError(f"the answer has more than {MAX_MESSAGE >> 20} MiB")
            yield piece

    async def aclose(self) -> None:
        """Close the connection's stream."""
        await self._stream.aclose()


def _plain(model: Any) -> JsonObject:
    """Return what the SDK has read as it is on the wire."""
    return json.loads(model.model_dump_json(by_alias=True, exclude_none=True))


def _told(error: BaseException | None) -> list[str]:
    """Say in a line what an exception, or a group of them, is about."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if error is None:
        return ["the connection is closed"]
    said = " ".join(str(error).split())[:300] or type(error).__name__
    return [said if isinstance(error, mcp.MCPError) else f"{type(error).__name__}: {said}"]
