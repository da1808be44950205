"""MCP servers, whose tools a task offers."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from posttrain.config.base import Address, MisfitError, Name, PositiveFloat, Section, Variable
from posttrain.config.paths import LocalPath

#: Text that is not empty.
_Text = Annotated[str, Field(min_length=1)]


class McpServerConfig(Section):
    """A server of the Model Context Protocol, of which every episode has a session of its own.

    No value of a secret stands in here: `env_vars` and `env_http_headers` name environment variables.
    """

    mcp: Name = Field(description="What the server is called in messages, metrics and records.")
    command: _Text | None = Field(
        default=None,
        description="Program that is started for each episode, and speaks MCP by its standard input and "
        "output.",
    )
    args: list[str] = Field(default_factory=list, description="Arguments of the command.")
    cwd: LocalPath | None = Field(
        default=None, description="Working directory of the command; the YAML file's folder if absent."
    )
    env_vars: list[Variable] = Field(
        default_factory=list,
        description="Names of environment variables that the command is given beside PATH, HOME, USER, "
        "LOGNAME, SHELL and TERM; it sees no others.",
    )
    url: Address | None = Field(
        default=None,
        min_length=1,
        description="Address of a server that runs already and speaks MCP by streamable HTTP, in place of "
        "`command`.",
    )
    env_http_headers: dict[str, Variable] = Field(
        default_factory=dict,
        description="Headers that the server at `url` is sent, each with the name of the environment "
        "variable that holds its value, such as {Authorization: MAPS_AUTHORIZATION}.",
    )
    enabled_tools: list[_Text] | None = Field(
        default=None,
        min_length=1,
        description="The tools that are offered to the model, by the server's names; all if absent.",
    )
    prefix: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9_.-]{0,64}$",
        description="What stands before the name of each tool, so that tools of two servers differ.",
    )
    startup_timeout_s: PositiveFloat = Field(
        default=60.0, description="Seconds in which a session must be open before the episode fails by it."
    )
    tool_timeout_s: PositiveFloat = Field(
        default=30.0, description="Seconds that a call may take before the episode fails by it."
    )
    record: LocalPath | None = Field(
        default=None,
        description="File in which all calls and results are kept, to be replayed. One that is there grows; "
        "what it holds for the same calls in the dialogue of the same prompt is also what the model sees.",
    )
    replay: LocalPath | None = Field(
        default=None,
        description="File of an earlier `record` from which all results come; the server is not started. A "
        "call that it lacks fails the episode.",
    )

    @property
    def name(self) -> str:
        """What tells it from the other entries of a task's tools."""
        return f"mcp: {self.mcp}"

    def missing_variables(self) -> list[str]:
        """Return the environment variables that the server needs and that are not set here."""
        named = [] if self.replay else [*self.env_vars, *self.env_http_headers.values()]
        return [name for name in named if not os.environ.get(name)]

    def files(self, base_dir: str) -> list[Path]:
        """Return the files that the command line names, such as the program: every node needs them."""
        folder = Path(base_dir, self.cwd or "")
        named = [*([self.command] if self.command else []), *self.args]
        return [folder / word for word in named if os.path.isfile(folder / word)]  # noqa: PTH113  # any word

    @model_validator(mode="after")
    def _check(self) -> "McpServerConfig":
        if self.command and self.url:
            raise MisfitError("url", "the server has a command as well", "keep one of the two")
        if not (self.command or self.url or self.replay):
            raise MisfitError(
                "command", "nothing says how to reach the server", "name its command, or its url"
            )
        for key in ("args", "cwd", "env_vars"):
            if getattr(self, key) and not self.command:
                raise MisfitError(key, "it is of a command, and there is none", "remove it")
        if self.env_http_headers and not self.url:
            raise MisfitError("env_http_headers", "they are sent to a url, and there is none", "use env_vars")
        if self.record and self.replay:
            raise MisfitError("record", "what is replayed makes no new calls", "remove record, or replay")
        return self
