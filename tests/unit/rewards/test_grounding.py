"""Grounding and pointing against slow independent implementations, and against their hacks."""

import itertools
import json
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from posttrain.types import RewardInput, Score
from rewards.builtin.grounding import grounding, iou_and_giou, pointing

Corners = tuple[int, int, int, int]


def box_score(gold: Any, answer: str, columns: dict[str, Any] | None = None, **params: Any) -> Score:
    x = RewardInput((), (), answer, ground_truth=gold, columns=columns or {})
    score = grounding(x, **{"family": "qwen3_vl", **params})
    assert score is not None
    return score


def point_score(gold: Any, answer: str, **params: Any) -> float:
    score = pointing(RewardInput((), (), answer, ground_truth=gold), **{"family": "qwen3_vl", **params})
    assert score is not None
    return score.value


def written(boxes: Any, key: str = "bbox_2d") -> str:
    return json.dumps([{key: list(box), "label": "a"} for box in boxes])


@st.composite
def corners(draw: st.DrawFn, size: int = 30) -> Corners:
    x1, y1 = draw(st.integers(0, size - 1)), draw(st.integers(0, size - 1))
    return x1, y1, draw(st.integers(x1 + 1, size)), draw(st.integers(y1 + 1, size))


def raster(box: Corners) -> np.ndarray:
    """The unit squares that a box of whole numbers covers."""
    covered = np.zeros((30, 30), dtype=bool)
    covered[box[1] : box[3], box[0] : box[2]] = True
    return covered


def exact_iou_and_giou(a: Corners, b: Corners) -> tuple[Fraction, Fraction]:
    """By counting unit squares."""
    both, either = raster(a) & raster(b), raster(a) | raster(b)
    rows, columns = np.nonzero(either)
    hull = int((np.ptp(rows) + 1) * (np.ptp(columns) + 1))
    iou, union = Fraction(int(both.sum()), int(either.sum())), int(either.sum())
    return iou, iou - Fraction(hull - union, hull)


def copies(boxes: list[Corners]) -> float:
    """By definition: each box counts for its share of the copies that it has."""

    def close(a: Corners, b: Corners) -> Fraction:
        iou = exact_iou_and_giou(a, b)[0]
        return min(Fraction(1), max(Fraction(0), (iou - Fraction(9, 10)) / Fraction(8, 100))) ** 2

    return float(sum(1 - 1 / sum(close(a, b) for b in boxes) for a in boxes))


@given(corners(), corners())
def test_iou_and_giou_equal_a_count_of_squares(a: Corners, b: Corners) -> None:
    iou, giou = iou_and_giou(np.array([a], dtype=float), np.array([b], dtype=float))
    expected = exact_iou_and_giou(a, b)
    assert (iou[0, 0], giou[0, 0]) == pytest.approx([float(value) for value in expected], abs=1e-12)


@settings(deadline=None)
@given(st.lists(corners(), min_size=1, max_size=4), st.lists(corners(), min_size=1, max_size=4), st.data())
def test_matching_equals_brute_force(golds: list[Corners], boxes: list[Corners], data: st.DataObject) -> None:
    metric = data.draw(st.sampled_from(["iou", "giou", "iou_at"]))
    exact = [[exact_iou_and_giou(p, g) for g in golds] for p in boxes]
    pairs = {
        "iou": [[float(iou) for iou, _ in row] for row in exact],
        "giou": [[float(1 + giou) / 2 for _, giou in row] for row in exact],
        "iou_at": [[float(iou >= Fraction(1, 2)) for iou, _ in row] for row in exact],
    }[metric]
    if len(pairs) > len(golds):
        pairs = [list(column) for column in zip(*pairs, strict=True)]
    orders = itertools.permutations(range(len(pairs[0])), len(pairs))
    best = max(sum(row[j] for row, j in zip(pairs, order, strict=True)) for order in orders)
    score = box_score([list(gold) for gold in golds], written(boxes), metric=metric)
    if len(boxes) > 2 * len(golds):
        assert score.value == 0
    else:
        kept = max(0.0, 1 - max(0.0, copies(boxes) - copies(golds)))
        assert score.value == pytest.approx(kept * 2 * best / (len(boxes) + len(golds)), abs=1e-9)
        assert score.parts["recall"] == pytest.approx(best / len(golds), abs=1e-9)


@given(st.lists(corners(1000), min_size=1, max_size=6), st.sampled_from(["iou", "giou", "iou_at"]))
def test_gold_is_full_marks_whatever_the_white_space(golds: list[Corners], metric: str) -> None:
    gold = [list(box) for box in golds]
    assert box_score(gold, written(golds), metric=metric).value == 1
    assert box_score(gold, f" \n{written(golds[::-1])}\t\n", metric=metric, threshold=1.0).value == 1
    assert box_score(gold, " \n").value == 0


@given(st.text(max_size=200), st.lists(st.lists(st.integers() | st.floats(), max_size=5), max_size=4))
def test_any_answer_gets_a_value_in_range(text: str, boxes: list[Any]) -> None:
    for answer in (text, written(boxes) + text, written(boxes)):
        for metric in ("iou", "giou", "iou_at"):
            assert 0 <= box_score([10, 10, 200, 300], answer, metric=metric).value <= 1
        assert 0 <= point_score([10, 10, 200, 300], answer.replace("bbox", "point")) <= 1
        assert 0 <= point_score([10, 10], answer.replace("bbox", "point")) <= 1


GOLD = [[100, 100, 300, 400], [500, 500, 700, 800]]
HACKS = {
    "one box a hundred times": [GOLD[0]] * 100,
    "each box twice": GOLD * 2,
    "a grid": [[x, y, x + 200, y + 300] for x in range(0, 800, 50) for y in range(0, 700, 50)],
    "reversed": [[300, 400, 100, 100]],
    "zero area": [[100, 100, 100, 400]],
    "outside": [[1500, 1500, 1700, 1800]],
    "huge": [[-1e300, -1e300, 1e300, 1e300]],
    "NaN": [[float("nan")] * 4],
    "infinite": [[float("-inf"), float("-inf"), float("inf"), float("inf")]],
}


@pytest.mark.parametrize("hack", HACKS)
def test_hacks_score_exactly_0(hack: str) -> None:
    assert box_score(GOLD, written(HACKS[hack])).value == 0
    assert box_score(GOLD, written(HACKS[hack]), metric="iou_at").value == 0


def test_a_copy_moved_a_little_loses_gradually() -> None:
    moved = [box_score(GOLD, written([GOLD[0], [100 + d, 100, 300, 400], GOLD[1]])).value for d in range(25)]
    assert moved[0] == moved[1] == 0
    assert moved == sorted(moved)
    assert moved[-1] == pytest.approx(0.8)


@settings(deadline=None)
@given(
    st.lists(corners(1000), min_size=1, max_size=4),
    st.data(),
    st.sampled_from(["iou", "giou"]),
    st.sampled_from([0.001, 0.01]),
)
def test_a_small_move_changes_little(
    boxes: list[Corners], data: st.DataObject, metric: str, step: float
) -> None:
    """An IoU changes by at most 2·ε / side for each edge that moves by ε, a copy's share by 20 times that."""
    golds = data.draw(st.lists(corners(1000), min_size=1, max_size=4))
    moved = [list[float](box) for box in boxes]
    index, edge = data.draw(st.integers(0, len(boxes) - 1)), data.draw(st.integers(0, 3))
    moved[index][edge] += step
    side = min(min(x2 - x1, y2 - y1) for x1, y1, x2, y2 in boxes) - step
    gold = [list(box) for box in golds]
    change = (
        box_score(gold, written(boxes), metric=metric).value
        - box_score(gold, written(moved), metric=metric).value
    )
    assert abs(change) <= 200 * len(boxes) * step / side


@settings(deadline=None)
@given(
    st.lists(corners(), min_size=1, max_size=3),
    st.lists(corners(), min_size=1, max_size=3),
    st.data(),
)
def test_copies_never_pay(golds: list[Corners], boxes: list[Corners], data: st.DataObject) -> None:
    gold = [list(box) for box in golds]
    box, shift = data.draw(st.sampled_from(boxes)), data.draw(st.sampled_from([0, 0.001]))
    copy = (box[0] + shift, box[1], box[2] + shift, box[3])
    assume(copies(golds) == 0)
    assert box_score(gold, written([*boxes, copy])).value == 0


def test_boxes_of_two_things_in_one_place_may_overlap() -> None:
    shirt, person = [100, 100, 300, 300], [100, 100, 300, 323]
    gold = {"boxes": [shirt, person], "labels": ["shirt", "person"]}
    answer = [
        {"bbox_2d": [100, 100, 300, 301], "label": "shirt"},
        {"bbox_2d": [100, 100, 300, 322], "label": "person"},
    ]
    assert box_score(gold, json.dumps(answer)).value == pytest.approx(0.995, abs=0.01)


@pytest.mark.parametrize(
    "answer",
    [
        "First I see [0, 0, 50, 50]. <answer>[100, 100, 300, 400] [500, 500, 700, 800]</answer>",
        "The candidate at [0, 0, 50, 50] is a dog.\n\\boxed{[100, 100, 300, 400], [500, 500, 700, 800]}",
        'Perhaps {"bbox_2d": [0, 0, 50, 50], "label": "dog"}?\n<answer>' + written(GOLD) + "</answer>",
        f"```json\n{written([[0, 0, 50, 50]])}\n```\nOn second thoughts:\n```json\n{written(GOLD)}\n```",
        "At first [0, 0, 50, 50]. Final answer: [100, 100, 300, 400] and [500, 500, 700, 800]",
        "<think>[0, 0, 50, 50]</think>[100, 100, 300, 400] and [500, 500, 700, 800]",
    ],
)
def test_only_the_answer_is_read(answer: str) -> None:
    assert box_score(GOLD, answer).value == 1
    assert box_score([[0, 0, 50, 50]], answer).value == 0


def test_a_box_around_everything_scores_little() -> None:
    assert box_score(GOLD, written([[0, 0, 1000, 1000]])).value < 0.05
    assert box_score(GOLD, written([[0, 0, 1000, 1000]]), metric="iou_at").value == 0


def test_a_box_that_is_none_counts_as_predicted() -> None:
    score = box_score(GOLD, written([*GOLD, [300, 400, 100, 100]]))
    assert score.parts == {"precision": pytest.approx(2 / 3), "recall": 1}


def test_a_repetition_in_the_reference_may_be_repeated() -> None:
    gold = {"boxes": [GOLD[0], GOLD[0]], "labels": ["person", "player"]}
    answer = json.dumps([{"bbox_2d": GOLD[0], "label": label} for label in ("person", "player")])
    assert box_score(gold, answer).value == 1


def test_labels() -> None:
    gold = {"boxes": GOLD, "labels": ["A", "b"]}
    assert box_score(gold, written(GOLD)).value == 0.5
    assert box_score(gold, written(GOLD), labels=False).value == 1
    points = json.dumps([{"point_2d": [200, 200], "label": "a"}, {"point_2d": [600, 600], "label": "a"}])
    assert point_score(gold, points) == 0.5
    assert point_score(gold, points, labels=False) == 1


@pytest.mark.parametrize(
    ("family", "answer"),
    [
        ("qwen2_vl", "<|box_start|>(250,250),(500,500)<|box_end|>"),
        ("qwen2_5_vl", '{"bbox_2d": [161, 91, 322, 182]}'),
        ("qwen3_vl", '{"bbox_2d": [250, 250, 500, 500]}'),
    ],
)
def test_each_family_in_its_own_frame(family: str, answer: str) -> None:
    columns = {"image_size": [640, 360], "resized_size": [644, 364]}
    for gold, frame in (
        ([160, 90, 320, 180], "pixel_original"),
        ([161, 91, 322, 182], "pixel_resized"),
        ([250, 250, 500, 500], "norm_1000"),
    ):
        score = box_score({"boxes": [gold], "frame": frame}, answer, columns, family=family)
        assert score.value == pytest.approx(1)


def test_objects_that_are_not_there() -> None:
    assert box_score([], "There is none.").value == 1
    assert box_score([], "[]").value == 1
    assert box_score([], written(GOLD)).value == 0
    assert box_score([], "").value == 0
    assert box_score([], "<think>There is none.").value == 0
    assert point_score([], "There is none.") == 1


def test_points() -> None:
    assert point_score(GOLD, written([[100, 100], [600, 600]], "point_2d")) == 1
    assert point_score(GOLD, written([[600, 600], [601, 601]], "point_2d")) == 0.5
    assert point_score(GOLD, written([[600, 600], [600, 600]], "point_2d")) == 0
    assert point_score(GOLD, written([[99, 100]], "point_2d")) == 0
    assert point_score(GOLD, written(GOLD)) == 0
    assert point_score([500, 500], written([[530, 540]], "point_2d")) == pytest.approx(0.5)
    assert point_score([500, 500], written([[530, 540]], "point_2d"), tolerance=0.2) == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("gold", "params", "message"),
    [
        ([1, 1, 1, 5], {}, "correct the dataset"),
        ([5, 5], {}, "pointing"),
        ([1, 1, 5, 5], {"family": "qwen9"}, "family 'qwen9'"),
        ([1, 1, 5, 5], {"metric": "dice"}, "metric 'dice'"),
        ([1, 1, 5, 5], {"threshold": 0}, "threshold 0"),
        ({"boxes": [[1, 1, 5, 5]], "frame": "pixel_original"}, {}, "image_size"),
    ],
)
def test_faults_of_the_dataset_and_the_configuration(gold: Any, params: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        box_score(gold, written([[1, 1, 5, 5]]), **params)


def test_faults_of_pointing() -> None:
    with pytest.raises(ValueError, match="tolerance"):
        point_score([5, 5], "[5, 5]", tolerance=0)
    with pytest.raises(ValueError, match="boxes and points"):
        point_score({"boxes": GOLD, "points": [[1, 2]]}, "[5, 5]")


def test_without_ground_truth_they_do_not_apply() -> None:
    x = RewardInput((), (), "[1, 2, 3, 4]")
    assert grounding(x, family="qwen3_vl") is None
    assert pointing(x, family="qwen3_vl") is None
