"""Are the boxes and points of an answer where the objects are?"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from posttrain.messages import without_thinking
from posttrain.types import FAMILY_FRAMES, Box, Family, Frame, RewardInput, Score
from rewards.reading.answers import normalise
from rewards.reading.regions import Gold, Region, in_frame, read_gold, read_regions
from rewards.sdk import reward

Metric = Literal["iou", "giou", "iou_at"]
Matrix = NDArray[np.float64]

#: From the first overlap on two boxes begin to be one written twice, at the second they are; points from
#: this distance (assumed).
NEAR_IOU, SAME_IOU, NEAR_POINTS = 0.9, 0.98, 1.0
#: More than this many regions for each object are a flood (assumed).
FLOOD = 2


@reward("grounding")
def grounding(
    x: RewardInput,
    family: Family,
    metric: Metric = "iou",
    threshold: float = 0.5,
    labels: bool = True,
) -> Score | None:
    """Score how well the answer's boxes fit the objects, each object matched with at most one box.

    Formula: S = max over one-to-one matchings of Σ s(p, g) (Hungarian method); precision P = S / predicted
    boxes, recall R = S / objects, value F1 = 2·P·R / (P + R). With one box and one object this is s(p, g):
    the IoU, (1 + GIoU) / 2, or [IoU ≥ threshold]. A pair with different labels has s = 0, and a box that is
    no box (reversed, NaN, three numbers) counts as predicted and matches nothing. Copies never raise F1, and
    the value is multiplied by max(0, 1 − max(0, C(P) − C(G))), where C(A) = Σ_a (1 − 1 / Σ_b c(a, b)) is the
    number of copies among the boxes P of the answer or the objects G, whatever their labels, with c(a, b) =
    clip((IoU − 0.9) / 0.08, 0, 1)². So a box written twice scores 0, a copy moved a little loses less, and
    moving any box by ε changes the value by O(ε). Exactly 0 gets an answer with more than two boxes for each
    object. Where the reference has no objects, 1 for an answer in words without any box.

    Mind that (1 + GIoU) / 2 is 0.5 and more for a box around everything; "iou" is the safer reward.

    Range: [0, 1]. Source: GIoU by Rezatofighi et al. 2019; matching as in DETR (2005.12872); the flood and
    repetition limits are ours (assumed).

    Args:
        x: `ground_truth` is `{"boxes": [[x1, y1, x2, y2], …], "labels": […], "frame": "pixel_original"}`,
            where `labels` may be absent and `frame` is the family's own if absent, or a list of boxes, or
            one box. None means that this does not apply. Where the frames differ, sizes come from the
            columns `image_size` and `resized_size` ([width, height]), the former else from the first image.
        family: Whose format the answer has: `qwen2_vl` and `qwen3_vl` write 0–1000 of width and height,
            `qwen2_5_vl` pixels of the resized image.
        metric: How a pair is scored: `iou`, `giou` or `iou_at`.
        threshold: The least IoU that counts for `iou_at`.
        labels: Whether labels must be equal, up to case and white space; only where the reference has them.

    Raises:
        ValueError: If a parameter, the ground truth or a size is not as above; a degenerate box is a fault
            of the dataset.
    """
    frame = _frame(family)
    if metric not in get_args(Metric) or not 0 < threshold <= 1:
        raise ValueError(
            f"metric {metric!r} with threshold {threshold!r}: take iou, giou or iou_at, in (0, 1]"
        )
    if x.ground_truth is None:
        return None
    gold = read_gold(x.ground_truth, frame)
    if gold.points:
        raise ValueError("ground_truth has points, which the reward 'pointing' compares; give boxes")
    regions = _of_kind(x.answer, "box", frame)
    early = _early_verdict(x.answer, regions, len(gold.boxes))
    if early is not None:
        return early
    targets = _array(in_frame(gold.boxes, frame, x))
    boxes = _array([region.box for region in regions if region.box])
    similarity = _similarity(boxes, targets, metric, threshold)
    copies = _copies(_box_closeness(boxes)) - _copies(_box_closeness(targets))
    return _matched(similarity * _same_label(regions, gold, labels), len(regions), copies)


@reward("pointing")
def pointing(x: RewardInput, family: Family, tolerance: float = 0.1, labels: bool = True) -> Score | None:
    """Score how well the answer's points hit the objects, each matched with at most one point.

    Formula: as for `grounding`, F1 of the best one-to-one matching, with s(p, g) = [p lies in g, its edge
    included] where the reference has boxes, and max(0, 1 − d / tolerance) where it has points. d is the
    distance with x in units of the image's width and y of its height. Points that are no points, floods
    (more than two for each object), copies and objects that are not there count as for `grounding`, with
    c(a, b) = max(0, 1 − d)² for points d units of the family's frame apart.

    Range: [0, 1]. Source: point-in-box as in ScreenSpot (2401.10935); the linear fall is ours (assumed).

    Args:
        x: `ground_truth` is `{"boxes": …}` or `{"points": [[x, y], …]}` with a `frame`, as for `grounding`,
            or a list of boxes or points, or one. Distances need the image's size unless all is in 0–1000.
        family: Whose format the answer has.
        tolerance: The distance from which a point scores 0.
        labels: As for `grounding`.

    Raises:
        ValueError: If a parameter, the ground truth or a size is not as above.
    """
    frame = _frame(family)
    if not 0 < tolerance <= 1:
        raise ValueError(f"tolerance {tolerance!r} must be a distance in (0, 1]")
    if x.ground_truth is None:
        return None
    gold = read_gold(x.ground_truth, frame)
    if gold.boxes and gold.points:
        raise ValueError("ground_truth has boxes and points; give the one that points are compared with")
    regions = _of_kind(x.answer, "point", frame)
    early = _early_verdict(x.answer, regions, len(gold.boxes) + len(gold.points))
    if early is not None:
        return early
    written = [region.box for region in regions if region.box]
    copies = _copies(_point_closeness(_array(written))) - _copies(
        _point_closeness(_array(in_frame(gold.points, frame, x)))
    )
    if gold.boxes:
        similarity = _inside(_array(written), _array(in_frame(gold.boxes, frame, x)))
    else:
        points, targets = (_array(in_frame(boxes, "norm_1000", x)) for boxes in (written, gold.points))
        distance = np.linalg.norm(points[:, None, :2] - targets[None, :, :2], axis=-1) / 1000
        similarity = np.maximum(0.0, 1 - distance / tolerance)
    return _matched(similarity * _same_label(regions, gold, labels), len(regions), copies)


def iou_and_giou(a: Matrix, b: Matrix) -> tuple[Matrix, Matrix]:
    """Compute the overlap of every pair of boxes.

    With I the area of the intersection, U of the union and C of the smallest box around both:
    IoU = I / U in [0, 1], GIoU = I / U − (C − U) / C in (−1, 1].

    Args:
        a: [N, 4] corners x1, y1, x2, y2 of boxes with x1 < x2 and y1 < y2.
        b: [M, 4] likewise.

    Returns:
        Two arrays [N, M].
    """
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    intersection = np.clip(high - low, 0, None).prod(axis=-1)
    around = np.maximum(a[:, None, 2:], b[None, :, 2:]) - np.minimum(a[:, None, :2], b[None, :, :2])
    hull = around.prod(axis=-1)
    areas_a, areas_b = ((boxes[:, 2:] - boxes[:, :2]).prod(axis=-1) for boxes in (a, b))
    union = areas_a[:, None] + areas_b[None, :] - intersection
    iou = intersection / union
    return iou, iou - (hull - union) / hull


def _frame(family: Family) -> Frame:
    if family not in FAMILY_FRAMES:
        raise ValueError(f"family {family!r} is none of {', '.join(FAMILY_FRAMES)}")
    return FAMILY_FRAMES[family]


def _of_kind(answer: str, kind: Literal["box", "point"], frame: Frame) -> list[Region]:
    return [region for region in read_regions(answer, frame) if region.kind == kind]


def _early_verdict(answer: str, regions: list[Region], objects: int) -> Score | None:
    """Return the verdict that the numbers of regions and objects give alone, or None."""
    note = f"{len(regions)} for {objects} objects"
    if not objects:
        return Score(float(bool(without_thinking(answer)) and not regions), note=note)
    if not any(region.box for region in regions) or len(regions) > FLOOD * objects:
        return Score(0.0, note=note)
    return None


def _matched(similarity: Matrix, predicted: int, copies: float) -> Score:
    """Compute F1 of the best matching of rows (valid predictions) with columns (objects), less for copies."""
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    total, objects = float(similarity[rows, columns].sum()), similarity.shape[1]
    parts = {"precision": total / predicted, "recall": total / objects}
    note = f"{predicted} for {objects} objects" + (f", {copies:.2g} of them copies" if copies > 0 else "")
    kept = min(1.0, max(0.0, 1 - copies))
    return Score(kept * min(1.0, 2 * total / (predicted + objects)), parts, note)


def _similarity(boxes: Matrix, targets: Matrix, metric: Metric, threshold: float) -> Matrix:
    iou, giou = iou_and_giou(boxes, targets)
    if metric == "giou":
        return (1 + giou) / 2
    return iou if metric == "iou" else (iou >= threshold).astype(float)


def _same_label(regions: list[Region], gold: Gold, wanted: bool) -> Matrix:
    """Build a matrix [N, M], 1 where labels agree; all 1 if that is not wanted or the reference has none."""
    ours = [normalise(region.label) for region in regions if region.box]
    if gold.labels is None or not wanted:
        return np.ones((len(ours), len(gold.boxes) + len(gold.points)))
    theirs = [normalise(label) for label in gold.labels]
    return np.array([[float(a == b) for b in theirs] for a in ours])


def _inside(points: Matrix, boxes: Matrix) -> Matrix:
    """Build a matrix [N, M], 1 where the point lies in the box or on its edge."""
    at = points[:, None, :2]
    return ((boxes[None, :, :2] <= at) & (at <= boxes[None, :, 2:])).all(axis=-1).astype(float)


def _copies(closeness: Matrix) -> float:
    """Count how many places are copies of others, those that are nearly so in part."""
    return float((1 - 1 / closeness.sum(axis=1)).sum())


def _box_closeness(boxes: Matrix) -> Matrix:
    """Build a matrix [N, N], 1 from an IoU of `SAME_IOU` and 0 up to one of `NEAR_IOU`."""
    iou, _ = iou_and_giou(boxes, boxes)
    return np.clip((iou - NEAR_IOU) / (SAME_IOU - NEAR_IOU), 0, 1) ** 2


def _point_closeness(points: Matrix) -> Matrix:
    """Build a matrix [N, N], 1 where two points are the same one and 0 from `NEAR_POINTS` apart."""
    distance = np.linalg.norm(points[:, None, :2] - points[None, :, :2], axis=-1)
    return np.clip(1 - distance / NEAR_POINTS, 0, 1) ** 2


def _array(boxes: list[Box]) -> Matrix:
    """Return the boxes' corners, [N, 4]."""
    return np.array([(box.x1, box.y1, box.x2, box.y2) for box in boxes], dtype=float).reshape(-1, 4)
