"""Scenes of coloured markers with letters, drawn at random."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

SCENE_SIZE = 512
LETTERS = "AHKLOTXZ"
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (240, 80, 70),
    "green": (80, 195, 95),
    "blue": (95, 145, 250),
    "yellow": (240, 215, 60),
    "purple": (205, 110, 230),
    "cyan": (80, 215, 225),
}
#: Coordinates of boxes are multiples of this in norm_1000, so that each is one token.
COORDINATE_STEP = 40
#: Each split draws its scenes from its own stream of random numbers, so that none is in two splits.
SPLIT_STREAMS = {"pretrain": 0, "sft": 1, "train": 2, "validation": 3, "test": 4}
Split = Literal["pretrain", "sft", "train", "validation", "test"]


@dataclass(frozen=True)
class Marker:
    """A disc with a letter; centre and diameter in pixels of the scene.

    Example:
        Marker("red", "K", x=130, y=402, diameter=72, letter_height=24)
    """

    colour: str
    letter: str
    x: int
    y: int
    diameter: int
    letter_height: int

    def box(self) -> tuple[float, float, float, float]:
        """Return the marker's bounding box, in norm_1000."""
        radius = self.diameter / 2
        edges = (self.x - radius, self.y - radius, self.x + radius, self.y + radius)
        left, top, right, bottom = (edge * 1000 / SCENE_SIZE for edge in edges)
        return left, top, right, bottom


@dataclass(frozen=True)
class Scene:
    """Markers of distinct colours on a plain ground."""

    markers: tuple[Marker, ...]
    ground: tuple[int, int, int]

    def draw(self) -> Image.Image:
        """Draw the scene as an image of 512×512 pixels, RGB."""
        image = Image.new("RGB", (SCENE_SIZE, SCENE_SIZE), self.ground)
        draw = ImageDraw.Draw(image)
        for marker in self.markers:
            radius = marker.diameter / 2
            disc = (marker.x - radius, marker.y - radius, marker.x + radius, marker.y + radius)
            draw.ellipse(disc, fill=COLOURS[marker.colour])
            font = ImageFont.load_default(size=marker.letter_height * 1.38)
            centre = (marker.x, marker.y)
            draw.text(centre, marker.letter, (0, 0, 0), font, anchor="mm", stroke_width=1)
        return image


def random_scene(rng: random.Random, fewest: int = 3, most: int = 5) -> Scene:
    """Draw some markers of distinct colours, at least 130 pixels apart."""
    colours = rng.sample(list(COLOURS), rng.randint(fewest, most))
    markers: list[Marker] = []
    while len(markers) < len(colours):
        diameter = rng.randint(56, 88)
        margin = diameter // 2 + 4
        x, y = (rng.randint(margin, SCENE_SIZE - margin) for _ in range(2))
        if any((x - other.x) ** 2 + (y - other.y) ** 2 < 130**2 for other in markers):
            continue
        letter = rng.choice(LETTERS)
        markers.append(Marker(colours[len(markers)], letter, x, y, diameter, rng.randint(20, 27)))
    return Scene(tuple(markers), random_ground(rng))


def random_ground(rng: random.Random) -> tuple[int, int, int]:
    """Draw the colour of a scene's ground, a light grey with a tint."""
    level = rng.randint(150, 235)
    red, green, blue = (level + rng.randint(-12, 12) for _ in range(3))
    return red, green, blue


def scene_stream(split: Split, seed: int) -> Iterator[Scene]:
    """Yield scenes without end, the same for the same split and seed, and different for any other."""
    rng = split_rng("marker-scenes", split, seed)
    while True:
        yield random_scene(rng)


def split_rng(name: str, split: Split, seed: int) -> random.Random:
    """Return the random numbers of a split's stream of scenes."""
    return random.Random(f"{name}/{SPLIT_STREAMS[split]}/{seed}")


def snap(value: float) -> int:
    """Round to the nearest coordinate that has a token, within 0–1000."""
    return max(0, min(1000, round(value / COORDINATE_STEP) * COORDINATE_STEP))


def sloppy_box(marker: Marker, rng: random.Random, sloppiness: float) -> list[int]:
    """Draw a box around a marker, as a careless annotator does.

    From such boxes the cold start teaches the format of a call, and RL is left to learn how to aim.

    Args:
        marker: The marker.
        rng: Random numbers.
        sloppiness: At 0 the box is the marker's own with a small margin; at 1 its side is up to four times
            the marker's, and its centre up to a marker's diameter away.

    Returns:
        Left, top, right and bottom, in norm_1000.
    """
    left, top, right, bottom = marker.box()
    side = (right - left) * (1.15 + sloppiness * rng.uniform(0, 2.85))
    drift = sloppiness * (right - left)
    centre_x = (left + right) / 2 + rng.uniform(-drift, drift)
    centre_y = (top + bottom) / 2 + rng.uniform(-drift, drift)
    x1, y1, x2, y2 = (
        snap(edge)
        for edge in (centre_x - side / 2, centre_y - side / 2, centre_x + side / 2, centre_y + side / 2)
    )
    return [min(x1, 960), min(y1, 960), max(x2, min(x1, 960) + 40), max(y2, min(y1, 960) + 40)]
