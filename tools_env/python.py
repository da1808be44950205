"""Python for the model, in the sandbox: the dialogue's images at hand, pictures back, names kept."""

import base64
import functools
import json
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

from PIL import Image

from posttrain.failures import WorldError
from posttrain.files.strict_json import parse_json
from posttrain.media.images import ImageError, open_image
from posttrain.sandbox import Execution, ResourceLimits, Sandbox, SandboxError, probe
from posttrain.types import ImageRef
from tools_env import notebook
from tools_env.sdk import ToolError, ToolResult, tool
from tools_env.sessions import Episode, Session

#: Images with more pixels are given to the code reduced.
MAX_GIVEN = 512 * 512
#: Most bytes of pixels that are given at all, the first images first.
MAX_GIVEN_BYTES = 24 << 20
#: Longest side of a picture that comes back.
MAX_SIDE = 2048
#: Most seconds of a whole episode.
EPISODE_S = 3600.0
# A sandbox dies with the thread that started it, so these threads live on.
_starters = ThreadPoolExecutor(4, thread_name_prefix="sandboxes")


class PythonSandbox(Session):
    """Run Python of the model's where it can do no harm.

    The sandbox has the standard library alone: no numpy, no PIL. Images are `Picture`s (see `notebook.py`)
    in `images`; `show(picture)` gives one back. Earlier code of the episode is run again before each call, so
    its names are there, and all of it together has the time of one call.

    Args:
        seconds: Processor time of a call.
        memory_mb: Its memory.
    """

    deadline_s = 60.0

    def __init__(self, seconds: float = 5.0, memory_mb: int = 1024) -> None:
        if not 0 < seconds <= 20:
            raise ValueError(f"seconds must be above 0 and at most 20, got {seconds}")
        if memory_mb < 128:
            raise ValueError(f"memory_mb must be at least 128, got {memory_mb}")
        self._limits = ResourceLimits(seconds, EPISODE_S, memory_mb)
        self._sandbox: Sandbox | None = None
        self._pieces: list[dict[str, Any]] = []

    def open(self, episode: Episode) -> None:
        """Start the sandbox; it raises where this machine cannot confine code."""
        probe()
        self._sandbox = _starters.submit(Sandbox(_program(), self._limits).__enter__).result()

    def close(self) -> None:
        """End its processes."""
        sandbox, self._sandbox = self._sandbox, None
        if sandbox is not None:
            sandbox.__exit__()

    @tool
    def python_tool(self, code: Annotated[str, "Python; print what you want to see."], images: list) -> Any:
        """Run Python (standard library only). Names stay defined from call to call.

        `images` holds the images of the dialogue: images[0].size, .getpixel((x, y)), .crop((left, top,
        right, bottom)), .resize((width, height)). Picture(width, height) makes a white one, with
        .putpixel((x, y), (r, g, b)). show(picture) lets you see it. Large images are reduced to 512 × 512
        pixels in all.
        """
        assert self._sandbox is not None
        mark = secrets.token_hex(16)
        pieces = [*self._pieces, {"code": code, "images": len(images)}]
        job = {"pieces": pieces, "images": _given(images), "mark": mark}
        try:
            ended = self._sandbox.run_program(json.dumps(job))
        except SandboxError as error:
            raise WorldError(str(error)) from error
        result, fault = _read(ended, mark)
        if result is None:
            raise ToolError(f"the code was ended: {fault}. Names of this call are lost, earlier ones are not")
        self._pieces = pieces
        if fault:
            raise ToolError(f"{result.text.strip()}\n{fault}".strip())
        return result if result.images else ToolResult(result.text or "(nothing was printed)")


@functools.cache
def _program() -> str:
    return Path(notebook.__file__).read_text(encoding="utf-8")


def _given(images: Sequence[ImageRef]) -> list[list[Any]]:
    """Return the images as the sandbox takes them; those for which there is no room as a single pixel."""
    given: list[list[Any]] = []
    left = MAX_GIVEN_BYTES
    for ref in images:
        image = _reduced(ref.path) if left > 0 else Image.new("RGB", (1, 1))
        data = image.tobytes()
        left -= len(data)
        given.append([image.width, image.height, base64.b64encode(data).decode()])
    return given


def _reduced(path: str) -> Image.Image:
    try:
        image = open_image(path)
    except ImageError as error:
        raise WorldError(str(error)) from error
    if (share := MAX_GIVEN / (image.width * image.height)) < 1:
        size = (max(1, int(image.width * share**0.5)), max(1, int(image.height * share**0.5)))
        image = image.resize(size, Image.Resampling.BICUBIC)
    return image


def _read(ended: Execution, mark: str) -> tuple[ToolResult | None, str]:
    """Return what a run printed and showed, and its fault; None where it did not get to its end.

    All of it was written by a stranger's code: at worst that shows itself something else.
    """
    printed, found, report = ended.output.rpartition("\n" + mark)
    if not found or ended.status != "done":
        return None, ended.detail or f"it ended by {ended.status}"
    try:
        said = parse_json(report)
        assert isinstance(said, dict)
        fault, shown = said["fault"], said["shown"]
        assert isinstance(fault, str)
        assert isinstance(shown, list)
        pictures = [_picture(row) for row in shown[: notebook.MAX_SHOWN]]
    except (ValueError, KeyError, AssertionError, TypeError):
        return None, "its report cannot be read"
    return ToolResult(printed, pictures), fault


def _picture(row: Any) -> Image.Image:
    width, height, data = row
    pixels = base64.b64decode(data, validate=True)
    if (
        type(width) is not int
        or type(height) is not int
        or not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE)
    ):
        raise ValueError("a picture is too large")
    if len(pixels) != width * height * 3:
        raise ValueError("a picture's size is wrong")
    return Image.frombytes("RGB", (width, height), pixels)
