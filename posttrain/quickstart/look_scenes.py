"""Questions on marker scenes that need no look, one look or two: how often to zoom has to be seen.

A scene has one large marker, whose letter can be read at once, and small ones, whose letters need a zoom.
Two of the small ones lie so far apart, across and down, that a crop of both shows neither letter. Asked is
the letter of the large marker (no look), of a small one (one look), or of two small ones in the order of the
question (two looks).
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from posttrain.quickstart.scenes import (
    COLOURS,
    LETTERS,
    SCENE_SIZE,
    Marker,
    Scene,
    Split,
    random_ground,
    split_rng,
)

#: `looks` are dialogues, `looks_simple` those about one marker, `looks_question` prompts.
LookKind = Literal["looks", "looks_simple", "looks_question"]
#: Most looks that a question needs.
MOST_LOOKS = 2
#: Pixels, across and down, between two small markers that one crop cannot show legibly.
APART = 225


@dataclass(frozen=True)
class LookQuestion:
    """A question on a scene.

    Attributes:
        markers: What is asked for, in order.
        looks: How many looks it needs.
    """

    markers: tuple[Marker, ...]
    looks: int

    @property
    def letters(self) -> str:
        """The right answer."""
        return "".join(marker.letter for marker in self.markers)


def is_look_kind(kind: str) -> bool:
    """Tell whether a kind of rows is one of these."""
    return kind in get_args(LookKind)


def look_scenes(split: Split, seed: int) -> Iterator[Scene]:
    """Yield scenes without end; the large marker comes first, then the two far apart, then another."""
    rng = split_rng("look-scenes", split, seed)
    while True:
        yield _scene(rng)


def questions(kind: str, scene: Scene, rng: random.Random) -> list[LookQuestion]:
    """Return a scene's questions: one of each number of looks; for `looks_simple` those of one marker."""
    large, *small = scene.markers
    simple = [LookQuestion((large,), 0), LookQuestion((rng.choice(small),), 1)]
    if kind == "looks_simple":
        return simple
    pair = small[:2] if rng.random() < 0.5 else small[1::-1]
    return [*simple, LookQuestion(tuple(pair), MOST_LOOKS)]


def looked_at(asked: LookQuestion, looks: int) -> Sequence[Marker]:
    """Return the markers that so many looks show, those of the question in turn."""
    return list(itertools.islice(itertools.cycle(asked.markers), looks))


def careless_looks(asked: LookQuestion, rng: random.Random) -> int:
    """Draw another number of looks than a question needs."""
    return rng.choice([number for number in range(MOST_LOOKS + 1) if number != asked.looks])


def _scene(rng: random.Random) -> Scene:
    colours = rng.sample(list(COLOURS), 4)
    while True:
        markers = [_marker(rng, colours[0], (184, 208), (100, 116))]
        markers += [_marker(rng, colour, (56, 72), (18, 22)) for colour in colours[1:]]
        _, first, second, _ = markers
        far = min(abs(first.x - second.x), abs(first.y - second.y)) >= APART
        if far and all(_clear(*pair) for pair in itertools.combinations(markers, 2)):
            return Scene(tuple(markers), random_ground(rng))


def _marker(rng: random.Random, colour: str, diameters: tuple[int, int], heights: tuple[int, int]) -> Marker:
    diameter = rng.randint(*diameters)
    margin = diameter // 2 + 4
    x, y = (rng.randint(margin, SCENE_SIZE - margin) for _ in range(2))
    return Marker(colour, rng.choice(LETTERS), x, y, diameter, rng.randint(*heights))


def _clear(one: Marker, other: Marker) -> bool:
    """Tell whether two markers leave room between them."""
    least = (one.diameter + other.diameter) / 2 + 40
    return (one.x - other.x) ** 2 + (one.y - other.y) ** 2 >= least**2
