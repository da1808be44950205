"""Load what a task names: tools, and its environment."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from posttrain.plugins import PluginError, declared, is_declared_name, resolve
from posttrain.types import ToolSpec
from tools_env.games import Environment, LoadedGame
from tools_env.mcp.server import McpServer
from tools_env.mcp.settings import McpSettings
from tools_env.sdk import Tool, ToolReference
from tools_env.sessions import AnyTool, Provider, Session, SessionClass, SessionTool

TOOLS, ENVIRONMENTS = "posttrain.tools", "posttrain.environments"


def load_tools(references: Iterable[ToolReference], base_dir: Path | None = None) -> list[AnyTool]:
    """Load the tools that a task names; one reference may stand for several that share a session.

    Args:
        references: `name`, `file.py:attr` or `package.module:attr`; or `{"name": …, "params": {…}}`, whose
            params go to the tool's class; or an MCP server, `{"mcp": …, "command": …}`.
        base_dir: Where relative files are looked for.

    Raises:
        PluginError: If a reference leads nowhere or to something that is no tool, or params do not fit.
    """
    return [tool for reference in references for tool in _load(reference, base_dir)]


def load_game(reference: ToolReference, base_dir: Path | None = None) -> LoadedGame:
    """Load the environment that a task names.

    Raises:
        PluginError: If the reference leads nowhere or to something that is no environment, or params do not
            fit.
    """
    name, params = _read(reference)
    found = resolve(name, ENVIRONMENTS, object, base_dir)
    if not (isinstance(found, type) and issubclass(found, Environment)):
        hint = "it is a tool; name it under `tools`" if _is_tool(found) else "derive it from it"
        raise PluginError(f"environment {name} is no class of tools_env.Environment: {hint}")
    try:
        return LoadedGame(found, params)
    except (TypeError, ValueError) as error:
        raise PluginError(f"environment {name}: params {params} do not fit: {error}") from error


def is_environment(reference: str, base_dir: Path | None = None) -> bool:
    """Tell whether a reference leads to an environment, and not to a tool.

    Raises:
        PluginError: If it leads nowhere.
    """
    if is_declared_name(reference) and reference in declared(ENVIRONMENTS):
        return True
    found = resolve(reference, TOOLS, object, base_dir)
    return isinstance(found, type) and issubclass(found, Environment)


def _load(reference: ToolReference, base_dir: Path | None) -> list[AnyTool]:
    if not isinstance(reference, str) and "mcp" in reference:
        return [*_mcp_server(reference, base_dir).tools]
    name, params = _read(reference)
    found = resolve(name, TOOLS, object, base_dir)
    if isinstance(found, type) and issubclass(found, Environment):
        raise PluginError(f"tool {name} is an environment; name it under `environment`")
    if isinstance(found, type):
        try:
            found = SessionClass(found, params) if issubclass(found, Session) else found(**params)
        except (TypeError, ValueError) as error:
            raise PluginError(f"tool {name}: params {params} do not fit: {error}") from error
    elif params:
        raise PluginError(f"tool {name} is not a class, so it takes no params; got {sorted(params)}")
    if isinstance(found, Provider):
        if not found.specs:
            raise PluginError(f"tool {name} has no tools; decorate its methods with @tool")
        return [SessionTool(spec, found) for spec in found.specs]
    if not isinstance(found, Tool) or not isinstance(found.spec, ToolSpec):
        raise PluginError(f"tool {name} is a {type(found).__name__}; decorate a function with @tool")
    return [found]


def _mcp_server(reference: Mapping[str, Any], base_dir: Path | None) -> McpServer:
    try:
        settings = McpSettings.of(reference, base_dir)
    except (TypeError, ValueError) as error:
        raise PluginError(str(error)) from error
    return McpServer(settings)


def _read(reference: ToolReference) -> tuple[str, dict[str, Any]]:
    if isinstance(reference, str):
        return reference, {}
    return reference["name"], dict(reference.get("params") or {})


def _is_tool(found: object) -> bool:
    return isinstance(found, Tool | Provider) or (isinstance(found, type) and issubclass(found, Session))
