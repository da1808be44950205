"""Dense supervision for the tiny model's vision tower: what is where, for every visual token.

A view is a marker scene as the model sees it: whole, or cropped as the zoom tool crops. Every cell
of its 4×4 grid of visual tokens is labelled with the marker that covers it.
"""

import itertools
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image

from posttrain.quickstart.marker_scenes import (
    COLOURS,
    COORDINATE_STEP,
    LETTERS,
    SCENE_SIZE,
    Scene,
    scene_stream,
)

IGNORED = -100
NO_MARKER = len(COLOURS)
#: A letter is taught only where it is at least this tall in the view (pixels of 64): below, it is
#: what the task says cannot be read.
LEGIBLE_HEIGHT = 8.0
CROPS_PER_SCENE = 6


@dataclass
class DenseViews:
    """Views and the labels of their cells.

    Attributes:
        images: N views, 64×64 RGB.
        colours: [N, cells] index into COLOURS, or NO_MARKER.
        letters: [N, cells] index into LETTERS, or IGNORED.
        boxes: [N, cells, 4] coordinate bins of the marker's box in the view, or IGNORED.
    """

    images: list[Image.Image]
    colours: np.ndarray
    letters: np.ndarray
    boxes: np.ndarray


def dense_views(scenes: int, seed: int, *, side: int = 64, grid: int = 4) -> DenseViews:
    """Draw scenes and label them and random crops of them.

    Args:
        scenes: Number of scenes; each gives itself and `CROPS_PER_SCENE` crops.
        seed: Seed of the scenes (the stream is the pre-training split's) and of the crops.
        side: Side of a view in pixels.
        grid: Visual tokens along a side.
    """
    rng = random.Random(f"dense-views/{seed}")
    images: list[Image.Image] = []
    labels: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for scene in itertools.islice(scene_stream("pretrain", seed), scenes):
        picture = scene.draw()
        for window in [(0.0, 0.0, float(SCENE_SIZE)), *(_crop(scene, rng) for _ in range(CROPS_PER_SCENE))]:
            x, y, size = window
            box = (x, y, x + size, y + size)
            images.append(picture.resize((side, side), Image.Resampling.BICUBIC, box=box))
            labels.append(_label(scene, window, side, grid))
    colours, letters, boxes = (np.stack(column) for column in zip(*labels, strict=True))
    return DenseViews(images, colours, letters, boxes)


def _crop(scene: Scene, rng: random.Random) -> tuple[float, float, float]:
    """A square window (left, top, side) around a marker; most are tight, some four times its size."""
    marker = rng.choice(scene.markers)
    size = marker.diameter * (1.0 + 3.0 * rng.random() ** 3)
    slack = (size - marker.diameter) / 2 + marker.diameter * 0.15
    left = marker.x - size / 2 + rng.uniform(-slack, slack)
    top = marker.y - size / 2 + rng.uniform(-slack, slack)
    limit = SCENE_SIZE - size
    return min(max(left, 0.0), limit), min(max(top, 0.0), limit), size


def _label(scene: Scene, window: tuple[float, float, float], side: int, grid: int):
    left, top, size = window
    cell = size / grid
    centres = (np.arange(grid) + 0.5) * cell
    cell_x, cell_y = np.meshgrid(left + centres, top + centres)
    colours = np.full(grid * grid, NO_MARKER)
    letters = np.full(grid * grid, IGNORED)
    boxes = np.full((grid * grid, 4), IGNORED)
    nearest = np.full(grid * grid, np.inf)
    for marker in scene.markers:
        radius = marker.diameter / 2
        distance = np.maximum(abs(cell_x - marker.x), abs(cell_y - marker.y)).ravel()
        covered = (distance < cell / 2 + 0.6 * radius) & (distance < nearest)
        nearest[covered] = distance[covered]
        colours[covered] = list(COLOURS).index(marker.colour)
        if marker.letter_height / size * side >= LEGIBLE_HEIGHT:
            bears = covered & (distance < cell / 2 + 0.5 * marker.letter_height)
            letters[bears] = LETTERS.index(marker.letter)
        edges = np.array([marker.x - radius, marker.y - radius, marker.x + radius, marker.y + radius])
        scaled = (edges - [left, top, left, top]) / size * 1000
        boxes[covered] = np.clip(np.round(scaled / COORDINATE_STEP), 0, 1000 // COORDINATE_STEP)
    return colours, letters, boxes
