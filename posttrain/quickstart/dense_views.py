"""Labels for every visual token, to train the tiny model's vision tower.

A view is a marker scene as the model sees it: whole, or cropped as the zoom tool crops. Each cell of its 4×4
grid of visual tokens is labelled with the marker that covers it.
"""

import itertools
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image

from posttrain.models.supervised_head import IGNORED
from posttrain.quickstart.scenes import (
    COLOURS,
    COORDINATE_STEP,
    LETTERS,
    SCENE_SIZE,
    Scene,
    scene_stream,
)

#: Side of a view, in pixels.
VIEW_SIDE = 64
#: Visual tokens along a side of a view.
GRID = 4
#: The colour label of a cell without a marker.
NO_MARKER = len(COLOURS)
#: Letters that are at least so tall in the view, in pixels, get a label; smaller ones cannot be read.
LEGIBLE_HEIGHT = 8.0
CROPS_PER_SCENE = 6


@dataclass
class DenseViews:
    """Views and the labels of their cells.

    Attributes:
        images: N views of 64×64 pixels, RGB.
        colours: [N, cells] index into COLOURS, or NO_MARKER.
        letters: [N, cells] index into LETTERS, or IGNORED.
        boxes: [N, cells, 4] bins of the coordinates of the marker's box in the view, or IGNORED.
    """

    images: list[Image.Image]
    colours: np.ndarray
    letters: np.ndarray
    boxes: np.ndarray


def dense_views(scenes: int, seed: int) -> DenseViews:
    """Draw scenes, and label them and random crops of them.

    Args:
        scenes: Number of scenes; each makes one view of the whole and `CROPS_PER_SCENE` crops.
        seed: Seed of the scenes, which are those of the pre-training split, and of the crops.
    """
    rng = random.Random(f"dense-views/{seed}")
    images: list[Image.Image] = []
    labels: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for scene in itertools.islice(scene_stream("pretrain", seed), scenes):
        picture = scene.draw()
        for window in [(0.0, 0.0, float(SCENE_SIZE)), *(_crop(scene, rng) for _ in range(CROPS_PER_SCENE))]:
            x, y, size = window
            box = (x, y, x + size, y + size)
            images.append(picture.resize((VIEW_SIDE, VIEW_SIDE), Image.Resampling.BICUBIC, box=box))
            labels.append(_label(scene, window))
    colours, letters, boxes = (np.stack(column) for column in zip(*labels, strict=True))
    return DenseViews(images, colours, letters, boxes)


def _crop(scene: Scene, rng: random.Random) -> tuple[float, float, float]:
    """Choose a square window (left, top, side) around a marker, most often a tight one."""
    marker = rng.choice(scene.markers)
    size = marker.diameter * (1.0 + 3.0 * rng.random() ** 3)
    slack = (size - marker.diameter) / 2 + marker.diameter * 0.15
    left = marker.x - size / 2 + rng.uniform(-slack, slack)
    top = marker.y - size / 2 + rng.uniform(-slack, slack)
    limit = SCENE_SIZE - size
    return min(max(left, 0.0), limit), min(max(top, 0.0), limit), size


def _label(scene: Scene, window: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the colours, letters and boxes of the cells of a window (left, top, side)."""
    left, top, size = window
    cell, cells = size / GRID, GRID**2
    centres = (np.arange(GRID) + 0.5) * cell
    cell_x, cell_y = np.meshgrid(left + centres, top + centres)
    colours = np.full(cells, NO_MARKER)
    letters = np.full(cells, IGNORED)
    boxes = np.full((cells, 4), IGNORED)
    nearest = np.full(cells, np.inf)
    for marker in scene.markers:
        radius = marker.diameter / 2
        distance = np.maximum(abs(cell_x - marker.x), abs(cell_y - marker.y)).ravel()
        covered = (distance < cell / 2 + 0.6 * radius) & (distance < nearest)
        nearest[covered] = distance[covered]
        colours[covered] = list(COLOURS).index(marker.colour)
        if marker.letter_height / size * VIEW_SIDE >= LEGIBLE_HEIGHT:
            bears = covered & (distance < cell / 2 + 0.5 * marker.letter_height)
            letters[bears] = LETTERS.index(marker.letter)
        edges = np.array([marker.x - radius, marker.y - radius, marker.x + radius, marker.y + radius])
        scaled = (edges - [left, top, left, top]) / size * 1000
        boxes[covered] = np.clip(np.round(scaled / COORDINATE_STEP), 0, 1000 // COORDINATE_STEP)
    return colours, letters, boxes
