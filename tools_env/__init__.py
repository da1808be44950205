"""Tools that a model can call, environments that it can talk to, and what runs them."""

from posttrain.failures import WorldError
from tools_env.environment import ToolEnvironment
from tools_env.games import Environment
from tools_env.loading import load_game, load_tools
from tools_env.sdk import FunctionTool, Tool, ToolError, ToolResult, tool
from tools_env.sessions import Episode, Session
from tools_env.zoom import ImageZoomIn

__all__ = [
    "Environment",
    "Episode",
    "FunctionTool",
    "ImageZoomIn",
    "Session",
    "Tool",
    "ToolEnvironment",
    "ToolError",
    "ToolResult",
    "WorldError",
    "load_game",
    "load_tools",
    "tool",
]
