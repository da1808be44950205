"""What a task says of an MCP server."""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class McpSettings:
    """An MCP server as a task lists it.

    Attributes:
        mcp: What the server is called in messages, metrics and records.
        command: Program that is started for each episode, and speaks by its standard input and output.
        args: Its arguments.
        cwd: Its working directory; that of references to files if "".
        env_vars: Names of environment variables that it is given beside PATH, HOME and the like.
        url: Address of a server that runs already, in place of `command`.
        env_http_headers: Headers that it is sent, and the environment variables that hold their values.
        enabled_tools: The tools that are offered, by the server's names; all if empty.
        prefix: What the model sees before each tool's name.
        startup_timeout_s: Seconds in which a session must be open.
        tool_timeout_s: Seconds that a call may take.
        record: File in which calls and their results are kept, "" for none.
        replay: File from which results come in place of the server, "" for none.
    """

    mcp: str
    command: str = ""
    args: tuple[str, ...] = ()
    cwd: str = ""
    env_vars: tuple[str, ...] = ()
    url: str = ""
    env_http_headers: tuple[tuple[str, str], ...] = ()
    enabled_tools: tuple[str, ...] = ()
    prefix: str = ""
    startup_timeout_s: float = 60.0
    tool_timeout_s: float = 30.0
    record: str = ""
    replay: str = ""

    @classmethod
    def of(cls, reference: Mapping[str, Any], base_dir: Path | None) -> "McpSettings":
        """Read what a task says; what it leaves out, or sets to None, is as usual.

        Raises:
            ValueError: If it names neither a server nor a record, or a key that there is not.
        """
        said = {key: value for key, value in reference.items() if value is not None}
        if unknown := said.keys() - {each.name for each in dataclasses.fields(cls)}:
            raise ValueError(f"an MCP server has no key {min(unknown)!r}")
        for key in ("args", "env_vars", "enabled_tools"):
            said[key] = tuple(said.get(key, ()))
        said["env_http_headers"] = tuple(sorted(dict(said.get("env_http_headers", {})).items()))
        folder = (base_dir or Path()).absolute()
        for key in ("cwd", "record", "replay"):
            said[key] = str(folder / said[key]) if said.get(key) else ""
        settings = cls(**said)
        if not (settings.command or settings.url or settings.replay):
            raise ValueError(f"MCP server {settings.mcp!r} needs a command, a url or a replay")
        return settings if settings.cwd else dataclasses.replace(settings, cwd=str(folder))

    @property
    def missing_variables(self) -> list[str]:
        """The environment variables that it names and that are not set."""
        named = (*self.env_vars, *(variable for _, variable in self.env_http_headers))
        return [] if self.replay else [name for name in named if not os.environ.get(name)]

    @property
    def headers(self) -> dict[str, str]:
        """The headers with their values."""
        return {header: os.environ.get(name, "").strip() for header, name in self.env_http_headers}
