"""Detection AP against COCO's definition, computed anew by brute force, and the factor for boxes too many."""

import json
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.types import RewardInput
from rewards.builtin.detection import detection_ap

Corners = tuple[int, int, int, int]
BOXES = st.tuples(*[st.integers(0, 6)] * 2, *[st.integers(1, 4)] * 2).map(
    lambda b: (100 * b[0], 100 * b[1], 100 * (b[0] + b[2]), 100 * (b[1] + b[3]))
)
LABELS = st.sampled_from(["cat", "dog"])
GOLDS = st.lists(st.tuples(BOXES, LABELS), min_size=1, max_size=5)
FOUND = st.lists(
    st.tuples(BOXES, st.sampled_from(["cat", "dog", "cow"]), st.sampled_from([0.2, 0.5, 0.9])), max_size=7
)


def ap(gold: Any, answer: str, family: str = "qwen3_vl", **params: Any) -> float:
    score = detection_ap(RewardInput((), (), answer, ground_truth=gold), family=family, **params)
    assert score is not None
    return score.value


def written(found: list[Any]) -> str:
    keys = ("bbox_2d", "label", "confidence")
    return f"```json\n{json.dumps([dict(zip(keys, item, strict=False)) for item in found])}\n```"


def reference(golds: list[Any]) -> dict[str, Any]:
    return {"boxes": [list(box) for box, _ in golds], "labels": [label for _, label in golds]}


def iou(a: Corners, b: Corners) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(0, width) * max(0, height)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def coco(golds: list[Any], found: list[Any], thresholds: Any) -> float:
    """One image, written out: match, count, let precision fall, read it at 101 recalls."""
    values = []
    for label in {label for _, label in golds}:
        objects = [box for box, name in golds if name == label]
        own = sorted((item for item in found if item[1] == label), key=lambda item: -item[2])
        for threshold in thresholds:
            taken: set[int] = set()
            curve: list[tuple[float, float]] = []
            for count, (box, *_) in enumerate(own, 1):
                best, at = min(threshold, 1 - 1e-10), -1
                for index, target in enumerate(objects):
                    if index not in taken and iou(box, target) >= best:
                        best, at = iou(box, target), index
                taken |= {at} - {-1}
                curve.append((len(taken) / len(objects), len(taken) / count))
            recalls = np.linspace(0, 1, 101)
            values += [
                np.mean([max((p for r, p in curve if r >= wanted), default=0.0) for wanted in recalls])
            ]
    return float(np.mean(values))


@given(GOLDS, FOUND, st.sampled_from([None, 0.5, 0.75]))
def test_it_is_the_ap_of_coco(golds: list[Any], found: list[Any], threshold: float | None) -> None:
    thresholds = np.linspace(0.5, 0.95, 10) if threshold is None else [threshold]
    value = ap(reference(golds), written(found), threshold=threshold, length_factor=False)
    assert value == pytest.approx(coco(golds, found, thresholds), abs=1e-12)


@given(GOLDS, FOUND)
def test_boxes_too_many_cost_by_their_share(golds: list[Any], found: list[Any]) -> None:
    plain = ap(reference(golds), written(found), length_factor=False)
    assert ap(reference(golds), written(found)) == pytest.approx(
        plain * min(1, len(golds) / max(1, len(found)))
    )


@given(GOLDS)
def test_the_reference_itself_gets_full_marks_in_any_order(golds: list[Any]) -> None:
    golds = list(dict.fromkeys(golds))
    assert ap(reference(golds), written(golds)) == 1
    assert ap(reference(golds[::-1]), written(golds)) == 1


@pytest.mark.parametrize(
    ("answer", "family", "right"),
    [
        ('[{"bbox_2d": [100, 200, 300, 400], "label": "cat"}]', "qwen3_vl", 1),
        ("The cat is at [100, 200, 300, 400].", "qwen3_vl", 1),
        (
            "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(100,200),(300,400)<|box_end|>",
            "qwen2_vl",
            1,
        ),
        ('<think>[0, 0, 9, 9]</think>{"bbox_2d": [100, 200, 300, 400]}', "qwen3_vl", 1),
        ("", "qwen3_vl", 0),
        ("There is none.", "qwen3_vl", 0),
        ("[300, 400, 100, 200]", "qwen3_vl", 0),
        ("[0, 0, 1000, 1000]", "qwen3_vl", 0),
    ],
)
def test_forms_of_one_box(answer: str, family: str, right: float) -> None:
    assert ap([100, 200, 300, 400], answer, family) == right


def test_confidence_orders_and_labels_count() -> None:
    gold = reference([((0, 0, 100, 100), "cat")])
    wrong, right = [500, 500, 600, 600], [0, 0, 100, 100]
    sure = [(wrong, "cat", 0.1), (right, "cat", 0.9)]
    for form in ("{}", "Here:\n{}\nThat is all.", "<answer>{}</answer>", "<think>[1, 2, 3, 4]</think>{}"):
        assert ap(gold, form.format(written(sure)), length_factor=False) == 1
    assert ap(gold, written([item[:2] for item in sure]), length_factor=False) == 0.5
    assert ap(gold, written([(right, "dog")])) == 0
    assert ap(gold, written([(right, "dog")]), labels=False) == 1
    assert ap(gold, written([(right, " CAT.")])) == 1


def test_nothing_to_find() -> None:
    assert ap([], "There is no cat.") == 1
    assert ap([], "[1, 2, 3, 4]") == 0
    assert ap([], "") == 0


def test_frames_are_converted_by_the_sizes() -> None:
    gold = {"boxes": [[10, 20, 30, 40]], "frame": "pixel_original"}
    columns = {"image_size": [100, 200], "resized_size": [200, 400]}
    for family, answer in (("qwen3_vl", "[100, 100, 300, 200]"), ("qwen2_5_vl", "[20, 40, 60, 80]")):
        x = RewardInput((), (), answer, ground_truth=gold, columns=columns)
        score = detection_ap(x, family=family)
        assert score is not None
        assert score.value == 1


@pytest.mark.parametrize(
    ("gold", "params", "message"),
    [
        ([1, 2], {}, "give boxes"),
        ([3, 3, 1, 1], {}, "x1 < x2"),
        ("box", {}, "not a list"),
        ({"box": [1, 2, 3, 4]}, {}, "'boxes'"),
        ([1, 2, 3, 4], {"family": "llava"}, "none of"),
        ([1, 2, 3, 4], {"threshold": 0}, "threshold"),
        ([1, 2, 3, 4], {"threshold": 50}, "threshold"),
    ],
)
def test_faults_are_named(gold: Any, params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ap(gold, "[1, 2, 3, 4]", **params)


def test_without_a_gold_it_does_not_apply() -> None:
    assert detection_ap(RewardInput((), (), "[1, 2, 3, 4]"), family="qwen3_vl") is None


def test_a_flood_pays_little_and_is_quick() -> None:
    start = time.process_time()
    flood = "[0, 0, 100, 100]" * 60_000
    assert ap([[0, 0, 100, 100]] * 50, flood) < 0.01
    assert time.process_time() - start < 5
