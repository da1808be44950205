from pathlib import Path
from typing import Annotated, Literal

import pytest
from PIL import Image

from posttrain.plugins import PluginError
from posttrain.types import ImageRef
from tools_env import FunctionTool, ImageZoomIn, ToolResult, load_tools, tool

README = Path(__file__).parents[3] / "tools_env" / "README.md"


def test_a_schema_from_hints():
    @tool
    def search(
        query: Annotated[str, "What to look for"],
        images: list[ImageRef],
        limit: int = 3,
        scores: list[float] | None = None,
        mode: Literal["fast", "deep"] = "fast",
        options: dict[str, bool] = {},  # noqa: B006
    ) -> str:
        """Search."""
        return query

    assert search.spec.name == "search"
    assert search.spec.description == "Search."
    assert search.spec.parameters == {
        "type": "object",
        "properties": {
            "query": {"type": "string", "description": "What to look for"},
            "limit": {"type": "integer"},
            "scores": {"anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "null"}]},
            "mode": {"enum": ["fast", "deep"]},
            "options": {"type": "object"},
        },
        "required": ["query"],
        "additionalProperties": False,
    }


def test_a_function_gets_its_arguments_and_the_images():
    @tool
    def count(images: list[ImageRef], plus: int = 0) -> str:
        """Count."""
        return str(len(images) + plus)

    @tool
    def blank(side: int) -> Image.Image:
        """Draw."""
        return Image.new("RGB", (side, side))

    assert count({"plus": 2}, [ImageRef("/a.png")]) == ToolResult("3")
    drawn = blank({"side": 7}, [])
    assert isinstance(drawn, ToolResult)
    assert drawn.images[0].size == (7, 7)


def test_functions_that_cannot_be_tools():
    def no_hint(x):
        """A."""

    def odd_hint(x: set[int]):
        """A."""

    def many(*x: int):
        """A."""

    def silent(x: int): ...

    for function, reason in [
        (no_hint, "'x' needs a type hint"),
        (odd_hint, "'x': .*no JSON form"),
        (many, "cannot be given by name"),
        (silent, "needs a docstring"),
    ]:
        with pytest.raises(TypeError, match=reason):
            tool(function)


PLUGIN = '''
from tools_env import tool

@tool
def echo(text: str) -> str:
    """Say it again."""
    return text

number = 3
'''


def test_tools_are_loaded_by_reference(tmp_path: Path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    references = ["mine.py:echo", {"name": "tools_env.zoom:ImageZoomIn", "params": {"min_side": 5}}]
    echo, zoom = load_tools(references, tmp_path)
    assert isinstance(echo, FunctionTool)
    assert echo({"text": "a"}, []) == ToolResult("a")
    assert isinstance(zoom, ImageZoomIn)


def test_the_built_in_tool_has_a_name():
    (zoom,) = load_tools(["image_zoom_in"])
    assert zoom.spec.name == "image_zoom_in_tool"


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("mine.py:number", "is a int"),
        ({"name": "mine.py:echo", "params": {"loud": True}}, "takes no params.*loud"),
        ({"name": "tools_env.zoom:ImageZoomIn", "params": {"min_size": 5}}, "min_size"),
        ({"name": "tools_env.zoom:ImageZoomIn", "params": {"frame": "percent"}}, "percent"),
        ("tools_env.sdk:ToolResult", "is a ToolResult"),
    ],
)
def test_references_to_what_is_no_tool(tmp_path: Path, reference, reason: str):
    (tmp_path / "mine.py").write_text(PLUGIN)
    with pytest.raises(PluginError, match=reason):
        load_tools([reference], tmp_path)


def test_the_readmes_tool_works(tmp_path: Path):
    code = README.read_text().split("```python\n")[1].split("```")[0]
    (tmp_path / "my_tools.py").write_text(code)
    (brightness,) = load_tools(["my_tools.py:brightness"], tmp_path)
    Image.new("RGB", (4, 4), (100, 100, 100)).save(tmp_path / "grey.png")
    assert isinstance(brightness, FunctionTool)
    seen = [ImageRef(str(tmp_path / "grey.png"))]
    assert brightness({"img_idx": 0}, seen) == ToolResult("100 of 255")
    assert len(code.strip().splitlines()) <= 14
