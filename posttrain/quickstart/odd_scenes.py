"""Pictures that go against expectation: hands, animals and dice with a number of their own, and hard clocks.

Models count what they expect and not what they see (five fingers, four legs), and read clocks as adverts
show them. Each picture here is drawn from a few numbers, so the answer is known: fingers, legs and pips are
counted (reward `counting`), clocks are read (reward `clock`), also turned, mirrored, and without numerals.

`write` is the generator behind `datasets_cfg/odd_*.yaml` and `clocks_*.yaml`.
"""

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from PIL import Image, ImageDraw, ImageFont, ImageOps

from posttrain.files.strict_json import Json, JsonObject
from posttrain.media.images import encode_png, pixel_hash, save_png

Kind = Literal["hand", "animal", "die", "clock"]
Split = Literal["train", "test"]
SIDE = 256
#: Pictures are drawn so many times larger, and made smaller, for smooth edges.
FINE = 2
#: One picture in so many is held out; which ones depends on the picture alone, whatever the seed.
HELD_OUT = 8
COLOURS = ((200, 60, 50), (40, 120, 70), (50, 80, 190), (120, 60, 140), (30, 30, 30))
SKINS = ((245, 208, 180), (224, 172, 130), (172, 116, 78), (112, 74, 48))
MIRRORED = "The clock is seen in a mirror. "
Point: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class Counted:
    """A hand, an animal or a die.

    Attributes:
        kind: Which of them.
        number: Fingers, legs or pips.
        colour: Of the thing, as an index of its colours.
        ground: Level of grey behind it.
        turn: Degrees by which it is turned.
        places: Numbers from 0 to 1 that say where its parts are, as far as that is free.
    """

    kind: Kind
    number: int
    colour: int
    ground: int
    turn: int
    places: tuple[float, ...]


@dataclass(frozen=True)
class Clock:
    """An analogue clock; a mark on its rim stands at twelve.

    Attributes:
        hour: From 1 to 12.
        minute: From 0 to 59.
        numerals: How many of the twelve numerals are there: 12, 4 or 0.
        turn: Degrees by which the clock is turned, clockwise.
        mirrored: Whether it is seen in a mirror.
        colour: Of its hands.
        ground: Level of grey behind it.
    """

    hour: int
    minute: int
    numerals: int
    turn: int
    mirrored: bool
    colour: int
    ground: int

    @property
    def time(self) -> str:
        """What it shows, such as `4:05`."""
        return f"{self.hour}:{self.minute:02}"


@dataclass(frozen=True)
class _Counting:
    """How one kind of thing is counted.

    Attributes:
        question: What is asked.
        expected: The number that one would guess; of a die any that a die has.
        numbers: Fewest and most.
        draw: Draws one.
    """

    question: str
    expected: tuple[int, ...]
    numbers: tuple[int, int]
    draw: Callable[[ImageDraw.ImageDraw, Counted], None]


def draw_scene(scene: Counted | Clock) -> Image.Image:
    """Draw a picture of 256×256 pixels, RGB."""
    ground = (scene.ground,) * 3
    image = Image.new("RGB", (SIDE * FINE, SIDE * FINE), ground)
    draw = ImageDraw.Draw(image)
    if isinstance(scene, Clock):
        _draw_clock(draw, scene)
    else:
        _COUNTED[scene.kind].draw(draw, scene)
    if scene.turn:
        image = image.rotate(-scene.turn, resample=Image.Resampling.BILINEAR, fillcolor=ground)
    if isinstance(scene, Clock) and scene.mirrored:
        image = ImageOps.mirror(image)
    return image.reduce(FINE)


def scenes(
    kind: Kind, split: Split, seed: int, ordinary: float, minute_step: int
) -> Iterator[Counted | Clock]:
    """Yield pictures without end; none of them is in both splits.

    Args:
        kind: What is drawn.
        split: Of which split.
        seed: Seed of the pictures.
        ordinary: Share that is as one expects: five fingers, four legs, the pips of a die, a plain clock.
        minute_step: Minutes of clocks are multiples of it.
    """
    rng = random.Random(f"odd-scenes/{kind}/{split}/{seed}")
    while True:
        plain = rng.random() < ordinary
        scene = _clock(rng, plain, minute_step) if kind == "clock" else _counted(rng, kind, plain)
        digest = hashlib.blake2b(repr(scene).encode(), digest_size=8).digest()
        if (int.from_bytes(digest) % HELD_OUT == 0) == (split == "test"):
            yield scene


def asked(scene: Counted | Clock) -> tuple[str, str]:
    """Return the question on a picture, and its answer."""
    if isinstance(scene, Clock):
        return f"{MIRRORED if scene.mirrored else ''}What time is it?", scene.time
    return _COUNTED[scene.kind].question, str(scene.number)


def write(
    directory: Path,
    *,
    kind: Kind,
    split: Split,
    count: int,
    seed: int = 0,
    ordinary: float = 0.25,
    minute_step: int = 1,
    answered: bool = False,
) -> None:
    """Write `count` pictures with a question each to `directory/data.jsonl`, and the images beside it.

    The column `ordinary` says whether a picture is as one expects, `scene` what was drawn.

    Args:
        directory: An existing, empty folder.
        kind: `hand`, `animal`, `die` or `clock`.
        split: `train`, or `test`, whose pictures are never in `train`.
        count: Number of pictures.
        seed: Seed of the pictures.
        ordinary: Share of pictures that are as one expects.
        minute_step: Minutes of clocks are multiples of it: 1, or 15 for quarters of an hour.
        answered: Whether rows have the answer as a demonstration, or are prompts for RL.

    Raises:
        ValueError: If a parameter cannot be used.
    """
    if kind not in get_args(Kind) or split not in get_args(Split):
        raise ValueError(f"kind {kind!r} with split {split!r}: take {get_args(Kind)} and {get_args(Split)}")
    if not 0 <= ordinary <= 1 or not 1 <= minute_step <= 60 or 60 % minute_step:
        raise ValueError(
            f"ordinary={ordinary!r} must be from 0 to 1, and minute_step={minute_step!r} divide 60 minutes"
        )
    images = directory / "images"
    images.mkdir()
    drawn = scenes(kind, split, seed, ordinary, minute_step)
    with (directory / "data.jsonl").open("w", encoding="utf-8") as file:
        for number in range(count):
            scene = next(drawn)
            image = draw_scene(scene)
            saved = save_png(lambda image=image: encode_png(image), pixel_hash(image), images)
            question, answer = asked(scene)
            place = str(Path(saved.path).relative_to(directory.absolute()))
            content: list[Json] = [{"type": "image", "image": place}, {"type": "text", "text": question}]
            turns: list[Json] = [{"role": "user", "content": content}]
            if answered:
                turns.append({"role": "assistant", "content": answer})
            row: JsonObject = {
                "id": f"{split}-{kind}-{number}",
                "messages": turns,
                "ground_truth": answer if isinstance(scene, Clock) else scene.number,
                "ordinary": _is_ordinary(scene),
                "scene": json.dumps(asdict(scene)),
            }
            file.write(json.dumps(row) + "\n")


def _is_ordinary(scene: Counted | Clock) -> bool:
    if isinstance(scene, Clock):
        return scene.numerals == 12 and not scene.turn and not scene.mirrored
    return scene.number in _COUNTED[scene.kind].expected


def _counted(rng: random.Random, kind: Kind, plain: bool) -> Counted:
    how = _COUNTED[kind]
    odd = [number for number in range(how.numbers[0], how.numbers[1] + 1) if number not in how.expected]
    number = rng.choice(how.expected if plain else odd)
    places = tuple(round(rng.random(), 3) for _ in range(how.numbers[1] + 3))
    return Counted(kind, number, rng.randrange(4), rng.randint(200, 250), rng.randint(-15, 15), places)


def _clock(rng: random.Random, plain: bool, minute_step: int) -> Clock:
    minute = rng.randrange(0, 60, minute_step)
    numerals, turn, mirrored = 12, 0, False
    while not plain and (numerals, turn, mirrored) == (12, 0, False):
        numerals, turn = rng.choice((12, 4, 0)), rng.choice((0, 0, 90, 180, 270))
        mirrored = rng.random() < 0.3
    return Clock(
        rng.randint(1, 12),
        minute,
        numerals,
        turn,
        mirrored,
        rng.randrange(len(COLOURS)),
        rng.randint(200, 250),
    )


def _at(angle: float, length: float, start: Point = (0.5, 0.5)) -> Point:
    """Return the point at a distance and an angle, clockwise from above, in shares of the picture's side."""
    radians = math.radians(angle)
    return start[0] + length * math.sin(radians), start[1] - length * math.cos(radians)


def _px(*points: Point) -> list[Point]:
    return [(x * SIDE * FINE, y * SIDE * FINE) for x, y in points]


def _disc(draw: ImageDraw.ImageDraw, centre: Point, radius: float, fill: tuple[int, int, int]) -> None:
    x, y = centre
    draw.ellipse(
        [value for p in _px((x - radius, y - radius), (x + radius, y + radius)) for value in p], fill
    )


def _limb(
    draw: ImageDraw.ImageDraw, start: Point, end: Point, width: float, fill: tuple[int, int, int]
) -> None:
    """Draw a line with round ends."""
    draw.line(_px(start, end), fill, round(width * SIDE * FINE))
    for point in (start, end):
        _disc(draw, point, width / 2, fill)


def _draw_hand(draw: ImageDraw.ImageDraw, hand: Counted) -> None:
    skin, centre = SKINS[hand.colour], (0.5, 0.62)
    _limb(draw, centre, (0.5, 0.97), 0.2, skin)
    _disc(draw, centre, 0.17, skin)
    spread = 150 / (hand.number - 1)
    for finger in range(hand.number):
        angle = -75 + spread * finger + (hand.places[finger] - 0.5) * spread * 0.2
        length = 0.36 + 0.05 * hand.places[finger] - (0.09 if finger in (0, hand.number - 1) else 0)
        _limb(draw, _at(angle, 0.14, centre), _at(angle, length, centre), 0.055, skin)


def _draw_animal(draw: ImageDraw.ImageDraw, animal: Counted) -> None:
    coat = COLOURS[animal.colour]
    draw.ellipse([value for p in _px((0.18, 0.32), (0.78, 0.6)) for value in p], coat)
    _disc(draw, (0.83, 0.3), 0.09, coat)
    _limb(draw, (0.72, 0.4), (0.82, 0.32), 0.07, coat)
    _limb(draw, (0.2, 0.42), (0.08, 0.26 + 0.1 * animal.places[-1]), 0.03, coat)
    step = 0.5 / (animal.number - 1)
    for leg in range(animal.number):
        x = 0.23 + step * leg + (animal.places[leg] - 0.5) * step * 0.25
        _limb(draw, (x, 0.5), (x + 0.02 * (animal.places[leg] - 0.5), 0.83), 0.035, coat)


def _draw_die(draw: ImageDraw.ImageDraw, die: Counted) -> None:
    edges = [value for p in _px((0.2, 0.2), (0.8, 0.8)) for value in p]
    draw.rounded_rectangle(edges, 0.08 * SIDE * FINE, (255, 255, 255), (60, 60, 60), 2 * FINE)
    cells = sorted(range(9), key=lambda cell: die.places[cell])[: die.number]
    if die.number in _FACES:
        cells = _FACES[die.number]
    for cell in cells:
        row, column = divmod(cell, 3)
        _disc(draw, (0.32 + 0.18 * column, 0.32 + 0.18 * row), 0.045, COLOURS[die.colour])


def _draw_clock(draw: ImageDraw.ImageDraw, clock: Clock) -> None:
    _disc(draw, (0.5, 0.5), 0.46, (60, 60, 60))
    _disc(draw, (0.5, 0.5), 0.44, (255, 255, 255))
    for hour in range(12):
        _limb(draw, _at(30 * hour, 0.41), _at(30 * hour, 0.43), 0.01, (60, 60, 60))
    draw.polygon(_px(_at(-5, 0.44), _at(5, 0.44), _at(0, 0.37)), (220, 40, 40))
    font = ImageFont.load_default(size=0.08 * SIDE * FINE)
    for hour in range(1, 13):
        if clock.numerals and hour % (12 // clock.numerals) == 0:
            draw.text(_px(_at(30 * hour, 0.33))[0], str(hour), (0, 0, 0), font, anchor="mm")
    colour = COLOURS[clock.colour]
    _limb(draw, (0.5, 0.5), _at(30 * clock.hour + clock.minute / 2, 0.19), 0.04, colour)
    _limb(draw, (0.5, 0.5), _at(6 * clock.minute, 0.34), 0.018, colour)


#: Cells of the pips of a die's faces, row by row.
_FACES = {1: [4], 2: [0, 8], 3: [0, 4, 8], 4: [0, 2, 6, 8], 5: [0, 2, 4, 6, 8], 6: [0, 2, 3, 5, 6, 8]}
_COUNTED: dict[Kind, _Counting] = {
    "hand": _Counting("How many fingers does the hand have?", (5,), (3, 8), _draw_hand),
    "animal": _Counting("How many legs does the animal have?", (4,), (2, 8), _draw_animal),
    "die": _Counting("How many pips are on the die?", (1, 2, 3, 4, 5, 6), (1, 9), _draw_die),
}
