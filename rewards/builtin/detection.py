"""Are all the objects found? Average precision of the answer's boxes, as COCO computes it."""

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from posttrain.files.strict_json import JsonError
from posttrain.messages import without_thinking
from posttrain.types import FAMILY_FRAMES, Box, Family, RewardInput, Score
from rewards.builtin.grounding import iou_and_giou
from rewards.reading.answers import final_answer, normalise
from rewards.reading.regions import Region, in_frame, read_gold, read_regions
from rewards.reading.schemas import answer_json
from rewards.sdk import reward

Matrix = NDArray[np.float64]

#: COCO's thresholds of IoU, and the recalls at which it reads the precision.
THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
RECALLS = np.linspace(0, 1, 101)
#: COCO looks at no more than this many boxes of one category.
MAX_DETECTIONS = 100


@reward("detection_ap", written=lambda _: None)
def detection_ap(
    x: RewardInput,
    family: Family,
    threshold: float | None = None,
    labels: bool = True,
    length_factor: bool = True,
) -> Score | None:
    """Score the average precision of the answer's boxes, times a factor for boxes too many.

    Formula: AP · min(1, objects / predicted boxes). AP is COCO's: boxes in the order of their confidence
    (equal ones, or ones without, as they are written) each take the free object of the same label with the
    highest IoU, at least the threshold; the precision, made to fall with recall, is averaged over the recalls
    0, 0.01, …, 1, then over the thresholds 0.50, 0.55, …, 0.95 and over the labels of the reference. Boxes
    beyond 100 of a label, and boxes with a label that the reference does not have, count in the factor
    alone. A box that is no box counts as predicted and matches nothing. Where the reference has no objects,
    1 for an answer in words without any box.

    Mind that AP alone costs wrong boxes nothing once all objects are found, hence the factor; and that it is
    steep, so that `grounding` is the denser reward.

    Range: [0, 1]. Source: COCO's `cocoeval.py` (area "all", no crowds); the factor is s_ovd of VLM-R1 (arXiv
    2504.07615), in its code `odLength_reward`.

    Args:
        x: `ground_truth` is `{"boxes": [[x1, y1, x2, y2], …], "labels": […], "frame": "pixel_original"}` or a
            list of boxes, as for `grounding`, with the same columns for sizes. None means that this does not
            apply.
        family: Whose format the answer has. In a JSON list a box may have a number `confidence` or `score`.
        threshold: One IoU for AP at it, such as 0.5 for AP50; None for the mean over COCO's ten.
        labels: Whether labels must be equal, up to case and white space; only where the reference has them.
        length_factor: Whether boxes too many cost; without it this is COCO's AP.

    Raises:
        ValueError: If a parameter, the ground truth or a size is not as above.
    """
    if family not in FAMILY_FRAMES:
        raise ValueError(f"family {family!r} is none of {', '.join(FAMILY_FRAMES)}")
    if threshold is not None and not 0 < threshold <= 1:
        raise ValueError(f"detection_ap: threshold {threshold!r} must be an IoU in (0, 1], such as 0.5")
    if x.ground_truth is None:
        return None
    frame = FAMILY_FRAMES[family]
    gold = read_gold(x.ground_truth, frame)
    if gold.points:
        raise ValueError("ground_truth has points, which the reward 'pointing' compares; give boxes")
    regions = [region for region in read_regions(_by_confidence(x.answer), frame) if region.kind == "box"]
    note = f"{len(regions)} boxes for {len(gold.boxes)} objects"
    if not gold.boxes:
        return Score(float(bool(without_thinking(x.answer)) and not regions), note=note)
    if not regions:
        return Score(0.0, note=note)
    named = gold.labels if gold.labels is not None and labels else None
    value = _mean_precision(regions, in_frame(gold.boxes, frame, x), named, threshold)
    factor = min(1.0, len(gold.boxes) / len(regions)) if length_factor else 1.0
    return Score(value * factor, {"ap": value, "length": factor}, note)


def _by_confidence(answer: str) -> str:
    """Return the answer with the objects of its JSON list by their confidence, the highest first."""
    text = without_thinking(answer)
    for part in (final_answer(text), text):
        try:
            value = answer_json(part)
        except JsonError:
            continue
        if isinstance(value, list) and any(map(_confidence, value)):
            return json.dumps(sorted(value, key=_confidence, reverse=True))
    return answer


def _confidence(item: object) -> float:
    """Return the number that an object has as its confidence or score, 0 where it has none."""
    value = item.get("confidence", item.get("score")) if isinstance(item, dict) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0


def _mean_precision(
    regions: Sequence[Region], targets: Sequence[Box], labels: Sequence[str] | None, threshold: float | None
) -> float:
    """Compute the mean of the average precision over labels and thresholds."""
    theirs = ["" if labels is None else normalise(labels[i]) for i in range(len(targets))]
    found: list[float] = []
    for label in dict.fromkeys(theirs):
        own = [r.box for r in regions if r.box and (labels is None or normalise(r.label) == label)]
        objects = [box for box, name in zip(targets, theirs, strict=True) if name == label]
        iou, _ = iou_and_giou(_corners(own[:MAX_DETECTIONS]), _corners(objects))
        found += [average_precision(iou, t) for t in (THRESHOLDS if threshold is None else (threshold,))]
    return float(np.mean(found))


def average_precision(iou: Matrix, threshold: float) -> float:
    """Compute COCO's average precision of one category.

    Args:
        iou: [N, M] IoU of the detections, the most confident first, with the objects, at least one.
        threshold: The IoU from which a detection may be an object.
    """
    hits = np.zeros(len(iou))
    free = np.ones(iou.shape[1], dtype=bool)
    for index, row in enumerate(iou):
        possible = np.flatnonzero(free & (row >= min(threshold, 1 - 1e-10)))
        if len(possible):
            best = possible[np.flatnonzero(row[possible] == row[possible].max())[-1]]
            free[best] = False
            hits[index] = 1
    true = np.cumsum(hits)
    recall, precision = true / iou.shape[1], true / np.arange(1, len(iou) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    reached = np.searchsorted(recall, RECALLS, side="left")
    return float(np.append(precision, 0.0)[np.minimum(reached, len(precision))].mean())


def _corners(boxes: Sequence[Box]) -> Matrix:
    """Return the boxes' corners, [N, 4]."""
    return np.array([(box.x1, box.y1, box.x2, box.y2) for box in boxes], dtype=float).reshape(-1, 4)
