"""What runs a model's Python within the sandbox, with pictures that need no library.

This module is sent there as text, and run as a program. It runs all the code of the dialogue so far, and
prints what the last piece of it says: so a name that was defined earlier is there, and nothing outlives the
episode.
"""

import ast
import base64
import contextlib
import io
import json
import sys
from typing import Any

#: Most pictures that are shown of one piece of code.
MAX_SHOWN = 4


class Picture:
    """An image: rows of pixels, each red, green and blue from 0 to 255."""

    def __init__(self, width: int, height: int, data: Any = None) -> None:
        self.width, self.height = int(width), int(height)
        self.data = bytearray(b"\xff" * (self.width * self.height * 3) if data is None else data)
        if min(self.width, self.height) < 1 or len(self.data) != self.width * self.height * 3:
            raise ValueError("the data do not fit the size")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.width, self.height

    def getpixel(self, place: tuple[int, int]) -> tuple[int, ...]:
        """Return the colour at (x, y)."""
        start = self._start(place)
        return tuple(self.data[start : start + 3])

    def putpixel(self, place: tuple[int, int], colour: tuple[int, int, int]) -> None:
        """Set the colour at (x, y)."""
        start = self._start(place)
        self.data[start : start + 3] = bytes(colour)

    def crop(self, box: tuple[int, int, int, int]) -> "Picture":
        """Cut out (left, top, right, bottom), within the picture."""
        left, top, right, bottom = (int(side) for side in box)
        left, top, right, bottom = max(0, left), max(0, top), min(self.width, right), min(self.height, bottom)
        starts = ((y * self.width + left) * 3 for y in range(top, bottom))
        data = b"".join(self.data[start : start + 3 * max(0, right - left)] for start in starts)
        return Picture(right - left, bottom - top, data)

    def resize(self, size: tuple[int, int]) -> "Picture":
        """Make it of another size, by the nearest pixels."""
        width, height = (int(side) for side in size)
        made = Picture(width, height)
        columns = [x * self.width // width for x in range(width)]
        for y in range(height):
            row = y * self.height // height * self.width
            line = b"".join(self.data[3 * (row + x) : 3 * (row + x) + 3] for x in columns)
            made.data[3 * y * width : 3 * (y + 1) * width] = line
        return made

    def __repr__(self) -> str:
        return f"Picture({self.width} × {self.height})"

    def _start(self, place: tuple[int, int]) -> int:
        x, y = place
        if not (0 <= x < self.width and 0 <= y < self.height):
            raise IndexError(f"({x}, {y}) is outside of {self.width} × {self.height}")
        return 3 * (int(y) * self.width + int(x))


def main() -> None:
    """Run the code of the dialogue; print what its last piece says, and a line of what it shows."""
    job = json.loads(sys.stdin.read())
    shown: list[Picture] = []
    scope: dict[str, Any] = {"__name__": "__main__", "Picture": Picture, "show": shown.append, "images": []}
    fault = ""
    for number, piece in enumerate(job["pieces"]):
        last = number == len(job["pieces"]) - 1
        shown.clear()
        scope["images"] = [_picture(each) for each in job["images"][: piece["images"]]]
        said = contextlib.nullcontext() if last else contextlib.redirect_stdout(io.StringIO())
        with said:
            fault = _run(piece["code"], scope)
    pictures = [each for each in shown if isinstance(each, Picture)]
    rows = [[*each.size, base64.b64encode(bytes(each.data)).decode()] for each in pictures[:MAX_SHOWN]]
    sys.stdout.write("\n" + job["mark"] + json.dumps({"fault": fault, "shown": rows, "of": len(pictures)}))


def _picture(row: list[Any]) -> Picture:
    return Picture(row[0], row[1], base64.b64decode(row[2]))


def _run(code: str, scope: dict[str, Any]) -> str:
    """Run a piece of code as a console does, its last expression printed; return what it raised."""
    try:
        tree = ast.parse(code)
        end = tree.body[-1] if tree.body else None
        if isinstance(end, ast.Expr):
            tree.body.pop()
        exec(compile(tree, "code", "exec"), scope)  # noqa: S102  # what a sandbox is for
        if isinstance(end, ast.Expr):
            value = eval(compile(ast.Expression(end.value), "code", "eval"), scope)  # noqa: S307
            if value is not None:
                print(repr(value))  # noqa: T201
    except (Exception, SystemExit) as error:
        line = error.__traceback__
        while line is not None and line.tb_next is not None:
            line = line.tb_next
        where = f" (line {line.tb_lineno})" if line is not None and line.tb_frame.f_globals is scope else ""
        return f"{type(error).__name__}: {error}{where}"[:500]
    return ""


if __name__ == "__main__":
    main()
