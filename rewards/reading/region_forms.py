"""The forms in which models write boxes and points, each read in linear time."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from posttrain.files.strict_json import JsonError, parse_json
from posttrain.types import Box, Frame

Kind = Literal["box", "point"]
#: An object that a model wrote, of which nothing is known.
Found: TypeAlias = Mapping[str, Any]

#: Coordinates beyond this are no place in any image, and their areas would lose digits.
MAX_COORDINATE = 1e6
#: A thinner box has no area to speak of.
MIN_SIDE = 1e-6
_NUMBERS_OF: dict[Kind, int] = {"box": 4, "point": 2}
_KEYS: dict[str, Kind] = {
    **dict.fromkeys(("bbox_2d", "bbox", "bounding_box", "box"), "box"),
    **dict.fromkeys(("point_2d", "point", "coordinate", "coordinates"), "point"),
}
_LABELS = ("label", "name", "category")
#: Objects whose coordinates have names of their own.
_NAMED: tuple[tuple[tuple[str, ...], Kind], ...] = (
    (("x1", "y1", "x2", "y2"), "box"),
    (("xmin", "ymin", "xmax", "ymax"), "box"),
    (("x_min", "y_min", "x_max", "y_max"), "box"),
    (("left", "top", "right", "bottom"), "box"),
    (("x", "y"), "point"),
)

# Each repetition below has a bound, so that hostile text costs linear time.
_NUMBER = r"[-+]?(?:\d{1,12}(?:\.\d{0,12})?|\.\d{1,12})"
_COMMA = r"\s{0,9}[,，;]\s{0,9}"
_GAP = r"(?:\s{0,9}[,，;]\s{0,9}|\s{1,9})"
_TWO = rf"\s{{0,9}}({_NUMBER}){_GAP}({_NUMBER})\s{{0,9}}"
_FOUR = r"\s{0,9}" + _GAP.join([f"({_NUMBER})"] * 4) + r"\s{0,9}"
#: Two corners: (1,2),(3,4) or [1,2][3,4]; [1,2], [3,4] are two points.
_CORNERS = rf"\({_TWO}\)(?:{_COMMA}|\s?-{{1,2}}>?\s?|\s?to\s)?\({_TWO}\)|\[{_TWO}\]\[{_TWO}\]"
_PLACE = re.compile(rf"[(\[{{<]?(?:{_FOUR}|{_TWO})[)\]}}>]?|{_CORNERS}")
_PLACES = re.compile(rf"[(\[]{_FOUR}[)\]]|{_CORNERS}|[(\[]{_TWO}[)\]]")
_TAGS = re.compile(
    r"<\|object_ref_start\|>(?P<ref>[^<]{0,500})<\|object_ref_end\|>|<ref>(?P<ref_>[^<]{0,500})</ref>"
    r"|<\|(?:box|point|quad)_start\|>(?P<place>[^<]{0,200})<\|(?:box|point|quad)_end\|>"
    r"|<(?P<tag>box|bbox|point|loc)>(?P<inner>[^<]{0,200})</(?P=tag)>"
)
_MOLMO = re.compile(r"<(points?)\s([^<>]{1,2000})>(?:([^<>]{0,500})</\1>)?", re.IGNORECASE)
_ATTRIBUTE = re.compile(r"([xy]\d{0,3}|alt)\s?=\s?(?:\"([^\"]{0,200})\"|'([^']{0,200})'|([^\s\"'>]{1,30}))")
_IS = rf"\s?[=:]\s?({_NUMBER})"
_ASSIGNED = re.compile(
    rf"(?<![\w.])x(_?1|_?min)?{_IS}{_GAP}y(?:_?1|_?min)?{_IS}"
    rf"(?:{_GAP}x_?(?:2|max){_IS}{_GAP}y_?(?:2|max){_IS})?"
)
_ALL_KEYS = "|".join((*_KEYS, "x1", "xmin", "x_min", "left", "x"))
_QUOTED_KEY = re.compile(rf"""["'](?:{_ALL_KEYS})["']\s{{0,9}}:""")
_FLAT_OBJECT = re.compile(r"\{[^{}]*\}")
_LENIENT = re.compile(
    rf"""(?P<quote>["'])(?P<key>{"|".join((*_KEYS, *_LABELS))})(?P=quote)\s{{0,9}}:\s{{0,9}}"""
    r"""(?:(?P<numbers>[(\[][-+\d.,;()\[\]\s]{1,2000}[)\]])|"(?P<double>[^"\n]{0,500})"|'(?P<single>[^'\n]{0,500})')?"""
)
_SQUARE = str.maketrans("(){}；，", "[][];,")
_SIZING = re.compile(r"\\(?:left|right)(?![A-Za-z])|\\[,;! ]")


@dataclass(frozen=True)
class Region:
    """A box or a point that a model wrote.

    Attributes:
        kind: What the model meant to write.
        box: Where it is; None where it is no place at all: a wrong number of coordinates, one that is not
            a finite number, corners reversed or on one line.
        label: What the model calls it, "" where it says nothing.
    """

    kind: Kind
    box: Box | None
    label: str = ""


def all_regions(text: str, frame: Frame) -> list[Region]:
    """Read every box and point in a text: those in tags and objects, or else bare ones."""
    regions, rest = _tagged(text, frame)
    regions += _keyed(rest, frame)
    if not regions:
        regions = _assigned(rest, frame)
    return regions or _bare(_SIZING.sub("", rest), frame)


def _tagged(text: str, frame: Frame) -> tuple[list[Region], str]:
    """Read what stands in tags, and return the text without it.

    A label holds for all boxes up to the next label.
    """
    regions, label = [], ""
    for found in _TAGS.finditer(text):
        reference = found["ref"] if found["ref"] is not None else found["ref_"]
        if reference is not None:
            label = reference.strip()
            continue
        inner = (found["place"] if found["place"] is not None else found["inner"]).strip()
        several = inner.startswith("[[") and list(_PLACES.finditer(inner))
        for place in several or [_PLACE.fullmatch(inner)]:
            numbers = _numbers(place)
            kind: Kind = "box" if len(numbers) == 4 else "point" if len(numbers) == 2 else _kind_of_tag(found)
            regions.append(Region(kind, place_of(numbers, kind, frame), label))
    text = _TAGS.sub(" ", text)
    regions += [region for found in _MOLMO.finditer(text) for region in _molmo(found, frame)]
    return regions, _MOLMO.sub(" ", text)


def _kind_of_tag(found: re.Match[str]) -> Kind:
    return "point" if "point" in (found["tag"] or found[0][:9]) else "box"


def _molmo(found: re.Match[str], frame: Frame) -> Iterator[Region]:
    """Yield the points of `<point x="1" y="2" alt="cat">` or `<points x1="1" y1="2" x2=…>`."""
    given = {name.lower(): a or b or c for name, a, b, c in _ATTRIBUTE.findall(found[2])}
    label = (given.get("alt") or found[3] or "").strip()
    for name in given:
        if name[0] == "x":
            texts = [given[name], given.get("y" + name[1:], "")]
            numbers = [float(text) for text in texts if re.fullmatch(_NUMBER, text)]
            yield Region("point", place_of(numbers, "point", frame), label)


def _keyed(text: str, frame: Frame) -> list[Region]:
    """Read objects; one may hold a list of boxes."""
    regions, labels = [], dict[int, str]()
    for found in _objects(text):
        given = (found[key] for key in _LABELS if isinstance(found.get(key), str))
        label = next(given, labels.get(id(found), "")).strip()
        for key, kind in _KEYS.items():
            if isinstance(found.get(key), dict):  # {"bbox": {"x1": …}, "label": …}
                labels[id(found[key])] = label
            elif key in found:
                regions += [
                    Region(kind, place_of(numbers, kind, frame), label)
                    for numbers in _coordinates(found[key])
                ]
        for names, kind in _NAMED:
            if all(name in found for name in names):
                numbers = [found[name] for name in names]
                regions.append(Region(kind, place_of(numbers, kind, frame), label))
                break
    return regions


def _coordinates(value: object) -> list[object]:
    """Return the coordinates of each place that a value holds, numbers or whatever stands in their place."""
    if isinstance(value, list) and value and all(isinstance(item, list) for item in value):
        return list(value)
    return [value]


def _objects(text: str) -> Iterator[Found]:
    """Yield the objects in a text that is JSON, or fenced JSON, or prose around flat objects."""
    for part in text.split("```"):
        if not _QUOTED_KEY.search(part):
            continue
        part = part.strip().removeprefix("json").strip()
        try:
            yield from _walk(parse_json(part))
        except JsonError:
            for flat in _FLAT_OBJECT.findall(part):
                yield from _flat_object(flat)


def _walk(value: object) -> Iterator[Found]:
    """Yield every object inside a JSON value, whose depth the strict reader has bounded."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _walk(item)


def _flat_object(text: str) -> Iterator[Found]:
    """Yield one object without inner ones; where it is no JSON, what its keys can be seen to hold."""
    if not _QUOTED_KEY.search(text):
        return
    try:
        found = parse_json(text)
    except JsonError:
        found = {}
        for pair in _LENIENT.finditer(text):
            written = pair["double"] if pair["double"] is not None else pair["single"]
            value = _listed(pair["numbers"]) if pair["numbers"] else written
            found[pair["key"]] = None if pair["key"] in found else value  # a key twice says nothing
    if isinstance(found, dict) and found:
        yield found


def _listed(text: str) -> object:
    """Read a list of numbers, in round brackets or square ones; None where it is none."""
    try:
        return parse_json(re.sub(r",\s{0,9}\]", "]", text.translate(_SQUARE)))
    except JsonError:
        return None


def _assigned(text: str, frame: Frame) -> list[Region]:
    """Read `x=1, y=2` as in pyautogui.click(x=1, y=2), and `x1=1, y1=2, x2=3, y2=4`."""
    regions = []
    for found in _ASSIGNED.finditer(text):
        first, *numbers = found.groups()
        kind: Kind = "box" if first or numbers[-1] else "point"
        regions.append(Region(kind, place_of([float(n) for n in numbers if n], kind, frame)))
    return regions


def _bare(text: str, frame: Frame) -> list[Region]:
    """Read lists and pairs of numbers, or the numbers that a text is."""
    whole = _PLACE.fullmatch(text.strip().strip("`$.").strip())
    regions = []
    for found in [whole] if whole else _PLACES.finditer(text):
        numbers = _numbers(found)
        kind: Kind = "point" if len(numbers) == 2 else "box"
        regions.append(Region(kind, place_of(numbers, kind, frame)))
    return regions


def _numbers(found: re.Match[str] | None) -> list[float]:
    return [float(n) for n in found.groups() if n is not None] if found else []


def place_of(numbers: object, kind: Kind, frame: Frame) -> Box | None:
    """Return the numbers as a place, or None where they are none."""
    if not isinstance(numbers, list) or len(numbers) != _NUMBERS_OF[kind]:
        return None
    if any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers):
        return None
    if not all(math.isfinite(n) and abs(n) <= MAX_COORDINATE for n in numbers):
        return None
    box = Box(*map(float, numbers if kind == "box" else [*numbers, *numbers]), frame=frame)
    return box if kind == "point" or min(box.x2 - box.x1, box.y2 - box.y1) > MIN_SIDE else None
