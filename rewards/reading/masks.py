"""Masks: polygons and COCO's run lengths, out of what a model wrote and out of a ground truth.

A mask is drawn on a grid whose size the reference and the picture decide, never the answer; every list has a
bound, so that hostile ones cost little time and memory.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from posttrain.files.strict_json import JsonError, parse_json
from posttrain.messages import without_thinking
from rewards.reading.answers import final_answer
from rewards.reading.schemas import answer_json

Grid = NDArray[np.bool_]
Points = NDArray[np.float64]

MAX_LENGTH = 100_000
MAX_POLYGONS, MAX_POINTS = 200, 5000
#: A grid of more cells is not decoded, and edges that cross more rows in all are not drawn.
MAX_CELLS, MAX_CROSSINGS = 2**24, 4_000_000
_KEYS = (
    "segmentation",
    "polygons",
    "polygon",
    "polygon_2d",
    "mask",
    "mask_2d",
    "masks",
    "points",
    "points_2d",
)
_NUMBER = r"[-+]?\d{1,9}(?:\.\d{1,12})?"
_PAIR = re.compile(rf"[(\[]\s{{0,9}}({_NUMBER})\s{{0,9}},\s{{0,9}}({_NUMBER})\s{{0,9}}[)\]]")


class MaskError(ValueError):
    """It is no mask; the message says why."""


@dataclass(frozen=True)
class Mask:
    """One mask, the union of its parts.

    Attributes:
        polygons: Corners [N, 2] of each polygon, in some frame of coordinates.
        grids: Masks that were written as run lengths, [height, width].
    """

    polygons: Sequence[Points] = ()
    grids: Sequence[Grid] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing is marked."""
        return not self.polygons and not any(grid.any() for grid in self.grids)


def answered_mask(answer: str) -> Mask | None:
    """Read the mask of an answer: JSON, alone, fenced or in prose, else pairs `(x, y), (x, y), …`.

    Returns:
        None where there is none, or it is no mask.
    """
    text = without_thinking(answer)[-MAX_LENGTH:]
    final = final_answer(text)
    values = [value for part in (final, text) for value in _json_in(part)]
    if not values:
        pairs = _PAIR.findall(final) or _PAIR.findall(text)
        values = [[[float(x), float(y)] for x, y in pairs]] if pairs else []
    for value in values:
        try:
            return read_mask(value)
        except MaskError:
            continue
    return None


def read_mask(value: object) -> Mask:
    """Read a mask: a polygon `[[x, y], …]` or `[x1, y1, x2, y2, …]`, run lengths, a list or object of these.

    Raises:
        MaskError: If it is none, or too large.
    """
    polygons: list[Points] = []
    grids: list[Grid] = []
    for part in _parts(value, depth=0):
        if isinstance(part, Mapping):
            grids.append(decode_runs(part))
        else:
            polygons.append(_polygon(part))
        if len(polygons) + len(grids) > MAX_POLYGONS or sum(map(len, polygons)) > MAX_POINTS:
            raise MaskError(f"more than {MAX_POLYGONS} polygons or {MAX_POINTS:,} points")
        if sum(grid.size for grid in grids) > MAX_CELLS:
            raise MaskError(f"more than {MAX_CELLS:,} pixels")
    return Mask(polygons, grids)


def decode_runs(form: Mapping[str, object]) -> Grid:
    """Decode COCO's run lengths `{"size": [height, width], "counts": …}`; counts are a list or text.

    Runs of pixels outside and inside take turns, column by column.

    Raises:
        MaskError: If they do not fill the mask, or it has more than `MAX_CELLS` pixels.
    """
    size, counts = form.get("size"), form.get("counts")
    if not (
        isinstance(size, list | tuple) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)
    ):
        raise MaskError(f"size {size!r:.80} is not [height, width]")
    height, width = size
    if height * width > MAX_CELLS:
        raise MaskError(f"{height} by {width} are more than {MAX_CELLS:,} pixels")
    runs = _short_runs(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list | tuple) or not all(type(n) is int and 0 <= n <= MAX_CELLS for n in runs):
        raise MaskError("counts are neither a list of whole numbers nor COCO's short text of one")
    if sum(runs) != height * width:
        raise MaskError(f"counts add up to {sum(runs)}, not to {height} times {width}")
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, np.array(runs, dtype=np.int64)).reshape(width, height).T


def draw(polygons: Sequence[Points], height: int, width: int) -> Grid:
    """Mark the cells of a grid whose centres lie in one of the polygons (even-odd rule).

    Args:
        polygons: Corners in units of cells, from the grid's upper left corner.
        height: Rows of the grid.
        width: Its columns.

    Raises:
        MaskError: If the edges are too many and too long.
    """
    marked = np.zeros((height, width), dtype=bool)
    budget = MAX_CROSSINGS
    for corners in polygons:
        (x1, y1), (x2, y2) = corners.T, np.roll(corners, -1, axis=0).T
        first = np.clip(np.ceil(np.minimum(y1, y2) - 0.5), 0, height).astype(np.int64)
        last = np.clip(np.ceil(np.maximum(y1, y2) - 0.5), 0, height).astype(np.int64)
        counts = last - first
        budget -= int(counts.sum())
        if budget < 0:
            raise MaskError("its edges are too many and too long")
        edge = np.repeat(np.arange(len(counts)), counts)
        if not len(edge):
            continue
        rows = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
        slope = (x2 - x1)[edge] / (y2 - y1)[edge]
        columns = np.clip(np.ceil(x1[edge] + (rows + 0.5 - y1[edge]) * slope - 0.5), 0, width).astype(
            np.int64
        )
        top, left = int(rows.min()), int(columns.min())
        turns = np.zeros((int(rows.max()) - top + 1, int(columns.max()) - left + 1), dtype=np.uint8)
        np.bitwise_xor.at(turns, (rows - top, columns - left), 1)
        inside = np.bitwise_xor.accumulate(turns, axis=1)[:, :-1] if turns.shape[1] > 1 else turns[:, :0]
        marked[top : top + inside.shape[0], left : left + inside.shape[1]] |= inside.astype(bool)
    return marked


def _parts(value: object, depth: int) -> Iterator[Sequence[object] | Mapping[str, object]]:
    """Yield the polygons and run lengths in a value."""
    if isinstance(value, Mapping):
        if "counts" in value:
            yield value
            return
        found = [value[key] for key in _KEYS if key in value]
        if len(found) != 1:
            raise MaskError(f"{str(value)[:80]!r} has none of {', '.join(_KEYS)}, counts")
        yield from _parts(found[0], depth + 1)
    elif isinstance(value, list | tuple) and depth < 6:
        if _numbers(value) or (value and all(_numbers(item) and len(item) == 2 for item in value)):
            yield value
        else:
            for item in value:
                yield from _parts(item, depth + 1)
    else:
        raise MaskError(f"{value!r:.80} is neither a polygon nor run lengths")


def _numbers(value: object) -> bool:
    """Check for a list of numbers that is not empty."""
    return isinstance(value, list | tuple) and bool(value) and all(type(n) in (int, float) for n in value)


def _polygon(value: Sequence[object]) -> Points:
    """Return the corners of a polygon, at least three."""
    if len(value) > 2 * MAX_POINTS:
        raise MaskError(f"more than {MAX_POINTS:,} points")
    flat = np.array(value, dtype=np.float64).reshape(-1)
    if len(flat) % 2 or len(flat) < 6 or not (np.abs(flat) <= 1e6).all():
        raise MaskError(f"{str(value)[:80]} has not three points [x, y] or more")
    return flat.reshape(-1, 2)


def _short_runs(text: str) -> list[int]:
    """Decode the text form of run lengths: five bits a character, each a difference to the last but one."""
    if len(text) > 8 * MAX_LENGTH:
        raise MaskError(f"counts has more than {8 * MAX_LENGTH:,} characters")
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            raise MaskError(f"counts has {character!r}, which is none of COCO's text form")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise MaskError("counts ends within a number")
    return runs


def _json_in(text: str) -> Iterator[object]:
    """Yield the JSON that a text is or holds, from its first bracket to its last."""
    try:
        yield answer_json(text)
        return
    except JsonError:
        pass
    starts = [at for at in (text.find("["), text.find("{")) if at >= 0]
    end = max(text.rfind("]"), text.rfind("}"))
    if starts and end > min(starts):
        try:
            yield parse_json(text[min(starts) : end + 1])
        except JsonError:
            return


def scaled(polygons: Sequence[Points], factor: tuple[float, float]) -> list[Points]:
    """Multiply the corners' coordinates."""
    return [corners * np.array(factor) for corners in polygons]


def within(polygons: Sequence[Points], width: float, height: float) -> bool:
    """Check that all corners lie in a picture of this size, but for rounding."""
    slack = 1e-6 + math.hypot(width, height) / 1000
    return all(
        (corners >= -slack).all() and (corners <= np.array([width, height]) + slack).all()
        for corners in polygons
    )
