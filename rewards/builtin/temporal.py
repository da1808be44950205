"""Is it when the answer says it is? Stretches of time in a video, by their overlap."""

from typing import Literal, get_args

import numpy as np
from scipy.optimize import linear_sum_assignment

from posttrain.messages import without_thinking
from posttrain.types import RewardInput, Score
from rewards.reading.times import Segment, answered_segments, segments_of
from rewards.sdk import reward

Metric = Literal["matched", "union"]
#: More stretches than this are a flood.
MAX_SEGMENTS = 200


def _written(ground_truth: object) -> list[str]:
    """Write the stretches of time as people do."""
    golds = _golds(ground_truth)
    return [", ".join(f"{gold.start!r} to {gold.end!r} seconds" for gold in golds) or "It does not happen."]


@reward("temporal_iou", written=_written)
def temporal_iou(x: RewardInput, metric: Metric = "matched", threshold: float | None = None) -> Score | None:
    """Score how well the stretches of time that the answer gives fit those when it happens.

    Formula: for one stretch a and one g, IoU = |a ∩ g| / |a ∪ g|. For several, "matched" is F1 of the best
    one-to-one matching, 2·Σ IoU / (answered + reference), as for `grounding`; "union" is the IoU of all
    answered time with all reference time. With a threshold a pair counts [IoU ≥ threshold], and so does the
    union. A stretch that is none (its end before its start) counts as answered and matches nothing. Where
    the reference is an empty list, 1 for an answer in words without any stretch.

    Read are `from 3.2 to 8.5 seconds`, `3.2s - 8.5s`, `00:03-00:08`, `1:00:03.5 to 1:00:08`, `between 3 and 8
    seconds`, `1 min 5 s to 2 minutes`, `starts at 3 s and ends at 8 s`, `[3.2, 8.5]`, and JSON with `start`
    and `end`; bare numbers are seconds. They are read from the final answer, or from the lines at its end.

    Range: [0, 1]. Source: tIoU and mIoU of Charades-STA (arXiv 1705.02101), with a threshold R1@IoU; for
    several stretches ours (assumed), as F1 in `grounding`.

    Args:
        x: `ground_truth` is `[start, end]` in seconds or as clock times, a list of such pairs, an object with
            `start` and `end`, a list of these, or a text in one of the forms above. None means that this does
            not apply.
        metric: `matched` or `union`.
        threshold: The least IoU that counts, in (0, 1]; None for the IoU itself.

    Raises:
        ValueError: If a parameter or the ground truth is not as above.
    """
    if metric not in get_args(Metric) or not (threshold is None or 0 < threshold <= 1):
        raise ValueError(f"metric {metric!r} with threshold {threshold!r}: take matched or union, in (0, 1]")
    if x.ground_truth is None:
        return None
    golds = _golds(x.ground_truth)
    found = answered_segments(x.answer)
    note = f"{len(found)} stretches for {len(golds)}"
    if not golds:
        return Score(float(bool(without_thinking(x.answer)) and not found), note=note)
    valid = [segment for segment in found if segment.valid]
    if not valid or len(found) > MAX_SEGMENTS:
        return Score(0.0, note=note)
    if metric == "union":
        value = _union_iou(valid, golds)
        return Score(value if threshold is None else float(value >= threshold), note=note)
    pairs = np.array([[iou(a, g) for g in golds] for a in valid])
    pairs = pairs if threshold is None else (pairs >= threshold).astype(float)
    rows, columns = linear_sum_assignment(pairs, maximize=True)
    return Score(min(1.0, 2 * float(pairs[rows, columns].sum()) / (len(found) + len(golds))), note=note)


def iou(a: Segment, b: Segment) -> float:
    """Compute the overlap of two valid stretches, in [0, 1]."""
    both = max(0.0, min(a.end, b.end) - max(a.start, b.start))
    return both / (max(a.end, b.end) - min(a.start, b.start)) if both else 0.0


def _golds(ground_truth: object) -> list[Segment]:
    """Read the stretches of a ground truth."""
    form = "give [start, end] in seconds, a list of such pairs, or '00:03-00:08'"
    try:
        golds = segments_of(ground_truth)
    except ValueError as error:
        raise ValueError(f"ground_truth: {error}; {form}") from None
    if not golds and ground_truth not in ([], ()):
        raise ValueError(f"ground_truth {ground_truth!r:.80} has no stretch of time; {form}")
    for gold in golds:
        if not gold.valid:
            raise ValueError(
                f"ground_truth: from {gold.start:g} to {gold.end:g} s is no stretch of time; {form}"
            )
    return golds


def _union_iou(ours: list[Segment], theirs: list[Segment]) -> float:
    """Compute the time in both over the time in either, each moment counted once."""
    ends = sorted({end for segment in (*ours, *theirs) for end in (segment.start, segment.end)})
    middles = (np.array(ends[1:]) + np.array(ends[:-1])) / 2
    inside = [
        np.any([(s.start < middles) & (middles < s.end) for s in side], axis=0) for side in (ours, theirs)
    ]
    lengths = np.diff(ends)
    return float(lengths[inside[0] & inside[1]].sum() / lengths[inside[0] | inside[1]].sum())
