"""Tasks on marker scenes beside reading a letter: each asked, answered at once, and judged by a rule.

- `locate`: where is a marker? Judged by the overlap of boxes (reward `grounding`).
- `count`: how many markers are there? Judged by the number (reward `counting`).
- `lookup`: where is a marker, by a list of all of them as text, without the image? A task of language alone,
  judged as `locate` is.

`<task>_question` is the prompt alone, for RL and for measuring. Boxes are in norm_1000, Qwen3-VL's frame, and
the ground truth says so: `grounding` converts it for a family that writes another.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from posttrain.files.strict_json import Json
from posttrain.quickstart.scenes import Marker, Scene, Split, random_scene, sloppy_box, split_rng

SceneTask = Literal["locate", "locate_question", "count", "count_question", "lookup", "lookup_question"]
COUNT_QUESTION = "How many markers are there?"
#: Fewest and most markers of a scene that is counted.
COUNTED = (1, 6)


@dataclass(frozen=True)
class Asked:
    """A question on a scene, its answer, and what a reward compares an answer with.

    Attributes:
        text: The question.
        shown: Whether the scene is shown with it.
        answer: What a demonstration answers; None where only the question is wanted.
        ground_truth: The rewards'.
    """

    text: str
    shown: bool
    answer: str | None
    ground_truth: Json


def place_question(colour: str) -> str:
    """Ask where a marker is."""
    return f"Where is the {colour} marker?"


def located(marker: Marker, box: list[int]) -> str:
    """Write one marker's box as JSON."""
    return json.dumps({"label": marker.colour, "bbox_2d": box})


def marker_list(scene: Scene, rng: random.Random, sloppiness: float) -> str:
    """Write every marker's label and box as JSON, in alphabetical order of the colours."""
    markers = sorted(scene.markers, key=lambda marker: marker.colour)
    return json.dumps(
        [{"label": marker.colour, "bbox_2d": sloppy_box(marker, rng, sloppiness)} for marker in markers]
    )


def is_scene_task(kind: str) -> bool:
    """Tell whether a kind of rows is one of these tasks."""
    return kind in get_args(SceneTask)


def counted_scenes(split: Split, seed: int) -> Iterator[Scene]:
    """Yield scenes to be counted, without end; none of them is in another split."""
    rng = split_rng("count-scenes", split, seed)
    while True:
        yield random_scene(rng, *COUNTED)


def ask(kind: str, scene: Scene, rng: random.Random, sloppiness: float) -> Iterator[Asked]:
    """Ask a task's questions on a scene: one, or for a demonstration of `locate` one for each marker.

    Args:
        kind: The task.
        scene: The scene.
        rng: Random numbers.
        sloppiness: How careless the demonstrated boxes of `locate` are (see `sloppy_box`).
    """
    task, _, asked_only = kind.partition("_")
    if task == "count":
        number = len(scene.markers)
        yield Asked(COUNT_QUESTION, True, None if asked_only else str(number), number)
        return
    several = task == "locate" and not asked_only
    for marker in scene.markers if several else [rng.choice(scene.markers)]:
        question, shown = place_question(marker.colour), task == "locate"
        truth = [round(edge) for edge in marker.box()]
        if not shown:
            listed = marker_list(scene, rng, 0.0)
            truth = next(each["bbox_2d"] for each in json.loads(listed) if each["label"] == marker.colour)
            question = f"{listed}\n{question}"
        said = sloppy_box(marker, rng, sloppiness) if shown else truth
        gold: Json = {"boxes": [[*truth]], "labels": [marker.colour], "frame": "norm_1000"}
        yield Asked(question, shown, None if asked_only else located(marker, said), gold)
