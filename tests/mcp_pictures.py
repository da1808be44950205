"""An MCP server by the SDK, with pictures: over stdio, or over HTTP where a port is given."""

import io
import os
import sys

from mcp.server.mcpserver import Image, MCPServer
from mcp_types import CallToolResult, TextContent
from PIL import Image as Pictures

server = MCPServer("pictures")
tally = 0


@server.tool()
def snap(shade: int, copies: int = 1) -> list[Image | str]:
    """Take pictures of a square whose red is given."""
    if not 0 <= shade <= 255:
        raise ValueError("shade must be from 0 to 255")
    file = io.BytesIO()
    Pictures.new("RGB", (64, 48), (shade, 0, 0)).save(file, "PNG")
    return ["here:", *[Image(data=file.getvalue(), format="png")] * copies]


@server.tool(structured_output=False)
def add(number: int = 1) -> str:
    """Add to what this process has counted."""
    global tally  # noqa: PLW0603 (what a session keeps)
    tally += number
    return f"{tally} by {os.getpid()}"


@server.tool()
def measure() -> dict[str, int]:
    """Measure."""
    return {"width": 64}


@server.tool(structured_output=False)
def surroundings() -> str:
    """Tell what the environment has."""
    return " ".join(f"{name}={value}" for name, value in sorted(os.environ.items()))


@server.tool(structured_output=False)
def refuse() -> CallToolResult:
    """Refuse."""
    return CallToolResult(content=[TextContent(text="give a city", type="text")], is_error=True)


if __name__ == "__main__":
    if sys.argv[1:]:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run()
