"""An MCP server as a provider of tools: discovered when it is loaded, with a session for each episode."""

import asyncio
import importlib
import time
from collections.abc import Awaitable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Protocol

from posttrain.failures import WorldError
from posttrain.files.strict_json import JsonObject
from posttrain.plugins import PluginError
from posttrain.types import ImageRef, ToolSpec
from tools_env.deadline import call_with_deadline
from tools_env.mcp.record import CallRecord, first_key, next_key
from tools_env.mcp.results import tool_result
from tools_env.mcp.settings import McpSettings
from tools_env.mcp.specs import SpecError, offered
from tools_env.sdk import Arguments, ToolError, ToolResult
from tools_env.sessions import CLOSE_S, Episode, SessionTool, told


class Connection(Protocol):
    """A connection to a server; see `tools_env.mcp.connection`."""

    async def open(self) -> list[JsonObject]:
        """Connect; return the tools that the server lists."""
        ...

    async def call(self, name: str, arguments: JsonObject) -> JsonObject:
        """Call a tool; return the result as it is on the wire."""
        ...

    def close(self) -> None:
        """Close it, whatever happens."""
        ...


class McpServer:
    """An MCP server that a task lists, or what was recorded of it.

    Args:
        settings: What the task says.

    Attributes:
        name: What it is called.
        specs: What the model is told of its tools.
        open_deadline_s: Seconds in which a session must be open.
        settings: What the task says.
        record: The calls that are replayed, or where they are recorded.
        listed: The tools as the server lists them, by its names.
        names: The server's names of the tools, by the model's.

    Raises:
        PluginError: If it cannot be started or reached, or its tools cannot be offered.
    """

    def __init__(self, settings: McpSettings) -> None:
        self.settings, self.name = settings, settings.mcp
        self.open_deadline_s = settings.startup_timeout_s
        self.record: CallRecord | None = None
        if missing := settings.missing_variables:
            raise PluginError(
                f"MCP server {self.name!r} needs the environment variable {missing[0]}, which is not set"
            )
        try:
            if settings.replay:
                self.record = CallRecord(Path(settings.replay), self.name)
            listed = self.record.tools if self.record is not None else discover(settings)
            if settings.record:
                self.record = CallRecord(Path(settings.record), self.name, listed)
            self._specs = offered(listed, settings)
        except (SpecError, WorldError, OSError, ValueError) as error:
            reason = str(error).removeprefix(f"MCP server {self.name!r}: ")
            raise PluginError(f"MCP server {self.name!r} cannot be used: {reason}") from error
        self.specs: Sequence[ToolSpec] = list(self._specs.values())
        self.listed = {str(tool["name"]): tool for tool in listed}
        self.names = {spec.name: name for name, spec in self._specs.items()}

    @property
    def tools(self) -> list[SessionTool]:
        """Its tools."""
        return [SessionTool(spec, self) for spec in self.specs]

    def session(self) -> "McpSession":
        """Make a session that is not connected yet."""
        return McpSession(self)

    def deadline_of(self, tool: str) -> float:
        """Return how many seconds a call may take."""
        return self.settings.tool_timeout_s

    def check_unchanged(self, listed: Sequence[JsonObject]) -> None:
        """Raise WorldError if a tool that is offered is not what it was when the run began."""
        now = {tool.get("name"): tool for tool in listed}
        for name in self._specs:
            if name not in now:
                raise WorldError(f"the server has no tool {name!r} any more")
            if now[name] != self.listed[name]:
                raise WorldError(f"the server describes its tool {name!r} otherwise than before")


class McpSession:
    """What one episode has of a server: a connection of its own, or its part of a record.

    Args:
        server: The server.
    """

    def __init__(self, server: McpServer) -> None:
        self._server = server
        self._connection = None if server.settings.replay else connection(server.settings)
        self._key = self._sample = ""

    def open(self, episode: Episode) -> Awaitable[None] | None:
        """Connect."""
        self._sample = episode.sample.id
        self._key = first_key(self._sample)
        return None if self._connection is None else self._open(self._connection)

    def call(self, name: str, arguments: Arguments, images: list[ImageRef]) -> Awaitable[ToolResult]:
        """Call a tool."""
        return self._call(self._server.names[name], arguments)

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()

    async def _open(self, opening: Connection) -> None:
        self._server.check_unchanged(await opening.open())

    async def _call(self, tool: str, arguments: Arguments) -> ToolResult:
        """Get the result from the server or the record, and make of it what the model sees."""
        begun, record = self._key, self._server.record
        self._key = next_key(begun, tool, arguments)
        if self._connection is None:
            assert record is not None
            line = await asyncio.to_thread(record.find, self._key)
            if line is None:
                raise WorldError(
                    f"{self._server.settings.replay} has no such call of {tool!r}: these calls were not made "
                    "when it was recorded; record again, or call the server"
                )
        else:
            line = await self._asked(self._connection, tool, arguments)
            if record is not None:
                line = await asyncio.to_thread(record.keep, line)
        if isinstance(refused := line.get("refused"), str):
            raise ToolError(refused)
        wire = line.get("result")
        if not isinstance(wire, dict):
            raise WorldError(f"the record's line of a call of {tool!r} has no result")
        return await asyncio.to_thread(tool_result, wire, self._server.listed[tool].get("outputSchema"))

    async def _asked(self, asked: Connection, tool: str, arguments: Arguments) -> JsonObject:
        """Ask the server; return the line of a record."""
        began = time.perf_counter()
        line: JsonObject = {"key": self._key, "sample": self._sample, "tool": tool, "arguments": arguments}
        try:
            answer: JsonObject = {"result": await asked.call(tool, arguments)}
        except ToolError as error:
            answer = {"refused": str(error)}
        return line | {"seconds": round(time.perf_counter() - began, 3)} | answer


def connection(settings: McpSettings) -> Connection:
    """Make a connection that is not open yet.

    Raises:
        PluginError: If the SDK is not installed.
    """
    try:
        module = importlib.import_module("tools_env.mcp.connection")
    except ModuleNotFoundError as error:
        raise PluginError(
            f"MCP servers need the module {error.name!r}, which is missing: pip install 'posttrain[mcp]'"
        ) from error
    return module.Connection(settings)


@lru_cache(maxsize=64)
def discover(settings: McpSettings) -> list[JsonObject]:
    """Return the tools that a server lists, asked once in a process.

    Raises:
        PluginError: If the SDK is not installed.
        WorldError: If the server cannot be started or reached.
    """
    asked = connection(settings)
    try:
        return call_with_deadline(asked.open, settings.startup_timeout_s)
    except Exception as error:
        raise WorldError(told(error)) from error
    finally:
        call_with_deadline(partial(asked.close), CLOSE_S)
