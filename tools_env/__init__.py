"""Tools that a model can call, and the environment that runs them."""

from tools_env.environment import ToolEnvironment
from tools_env.sdk import FunctionTool, Tool, ToolError, ToolResult, load_tools, tool
from tools_env.zoom import ImageZoomIn

__all__ = [
    "FunctionTool",
    "ImageZoomIn",
    "Tool",
    "ToolEnvironment",
    "ToolError",
    "ToolResult",
    "load_tools",
    "tool",
]
