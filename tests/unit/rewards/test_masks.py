"""Masks: drawn as brute force draws them, decoded as COCO encodes them, and compared in pixels."""

import json
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.types import RewardInput
from rewards.builtin.masks import mask_iou
from rewards.reading.masks import MaskError, decode_runs, draw, read_mask

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SQUARE = [[100, 100], [500, 100], [500, 500], [100, 500]]
CORNER = st.tuples(st.integers(0, 20), st.integers(0, 20)).map(lambda p: [p[0] / 2, p[1] / 2])
GRIDS = st.tuples(st.integers(1, 6), st.integers(1, 6)).flatmap(
    lambda s: st.lists(st.lists(st.booleans(), min_size=s[1], max_size=s[1]), min_size=s[0], max_size=s[0])
)
RECTANGLES = st.tuples(*[st.integers(0, 400)] * 2, *[st.integers(50, 500)] * 2).map(
    lambda r: (r[0], r[1], r[0] + r[2], r[1] + r[3])
)


def value(gold: Any, answer: str, family: str = "qwen3_vl", **columns: Any) -> float:
    score = mask_iou(RewardInput((), (), answer, ground_truth=gold, columns=columns), family=family)
    assert score is not None
    return score.value


def runs(grid: Any) -> dict[str, Any]:
    """COCO's run lengths of a grid."""
    array = np.array(grid, dtype=bool)
    counts, last = [0], False
    for pixel in array.flatten(order="F").tolist():
        if pixel != last:
            counts.append(0)
            last = pixel
        counts[-1] += 1
    return {"size": list(array.shape), "counts": counts}


def short(counts: list[int]) -> str:
    """Their text form, as rleToString of COCO's maskApi.c writes it."""
    text = ""
    for index, count in enumerate(counts):
        rest = count - (counts[index - 2] if index > 2 else 0)
        more = True
        while more:
            bits = rest & 31
            rest >>= 5
            more = rest != (-1 if bits & 16 else 0)
            text += chr(48 + (bits | (32 if more else 0)))
    return text


def inside(x: float, y: float, corners: list[list[float]]) -> bool:
    """The even-odd rule, a ray to the right."""
    crossed = False
    for (x1, y1), (x2, y2) in zip(corners, corners[1:] + corners[:1], strict=True):
        if (y1 <= y) != (y2 <= y):
            crossed ^= x1 + (y - y1) * (x2 - x1) / (y2 - y1) > x
    return crossed


@given(st.lists(CORNER, min_size=3, max_size=7))
def test_drawing_is_brute_force_over_centres(corners: list[list[float]]) -> None:
    near = [[x + 0.013, y + 0.017] for x, y in corners]  # no centre on an edge
    drawn = draw([np.array(near)], 10, 10)
    expected = [[inside(x + 0.5, y + 0.5, near) for x in range(10)] for y in range(10)]
    assert drawn.tolist() == expected


@given(GRIDS)
def test_run_lengths_are_decoded_as_coco_encodes_them(grid: list[list[bool]]) -> None:
    form = runs(grid)
    assert decode_runs(form).tolist() == grid
    assert decode_runs({**form, "counts": short(form["counts"])}).tolist() == grid


def test_the_text_form_has_long_runs_and_differences() -> None:
    counts = [5000, 7, 93, 6, 94, 5, 4795]
    form = {"size": [100, 100], "counts": short(counts)}
    assert (decode_runs(form) == decode_runs({**form, "counts": counts})).all()
    assert short([6, 1, 40, 4, 5, 4, 5, 4, 21]) == "61X13mN000`0"  # as pycocotools writes it


@given(RECTANGLES, RECTANGLES)
def test_rectangles_overlap_as_boxes_do(a: Any, b: Any) -> None:
    def corners(r: Any) -> list[list[int]]:
        return [[r[0], r[1]], [r[2], r[1]], [r[2], r[3]], [r[0], r[3]]]

    both = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(r[2] - r[0]) * (r[3] - r[1]) for r in (a, b)]
    found = value(corners(a), json.dumps(corners(b)))
    assert found == pytest.approx(both / (sum(areas) - both))
    assert value(corners(b), json.dumps(corners(a)[::-1])) == found


@pytest.mark.parametrize(
    "answer",
    [
        "[[100, 100], [500, 100], [500, 500], [100, 500]]",
        "[100, 100, 500, 100, 500, 500, 100, 500]",
        '{"polygon": [[500, 500], [100, 500], [100, 100], [500, 100]]}',
        '{"segmentation": [[100, 100, 500, 100, 500, 500, 100, 500]]}',
        '```json\n[{"mask_2d": [[100, 100], [500, 100], [500, 500], [100, 500]], "label": "cat"}]\n```',
        "The outline is (100, 100), (500, 100), (500, 500), (100, 500).",
        "Here it is: [[100, 100], [500, 100], [500, 500], [100, 500]] as asked.",
        "<answer>[[100, 100], [500, 100], [500, 500], [100, 500]]</answer>",
        "<think>[[0, 0], [9, 0], [9, 9]]</think>[[100, 100], [500, 100], [500, 500], [100, 500]]",
        "[[100, 100, 300, 100, 300, 500, 100, 500], [300, 100, 500, 100, 500, 500, 300, 500]]",
    ],
)
def test_forms_of_one_outline(answer: str) -> None:
    for gold in (
        SQUARE,
        [[100, 100, 500, 100, 500, 500, 100, 500]],
        {"polygons": [SQUARE]},
        {"segmentation": SQUARE, "frame": "norm_1000"},
    ):
        assert value(gold, answer) == 1
    assert value([[600, 600], [900, 600], [900, 900]], answer) == 0


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "no mask",
        "[100, 100, 500, 500]",
        "[[100, 100], [500, 500]]",
        "[[100, 100], [500, 100], [500, 5000], [100, 500]]",
        "[[100, 100], [500, 100], [500, -500], [100, 500]]",
        '[[100, 100], [500, 100], ["500", 500], [100, 500]]',
        '{"size": [1, 1], "counts": [0, 1]}',
        "[[100, 100], [100, 100], [100, 100]]",
        json.dumps([SQUARE] * 201),
        json.dumps([[n % 1000, n % 7] for n in range(5001)]),
    ],
)
def test_no_mask(answer: str) -> None:
    assert value(SQUARE, answer) == 0


@given(GRIDS.filter(lambda grid: any(map(any, grid))), GRIDS)
def test_run_lengths_are_compared_pixel_by_pixel(gold: list[list[bool]], other: list[list[bool]]) -> None:
    assert value(runs(gold), json.dumps(runs(gold))) == 1
    a, b = np.array(gold), np.array(other)
    expected = (a & b).sum() / (a | b).sum() if a.shape == b.shape else 0
    assert value(runs(gold), json.dumps(runs(other))) == pytest.approx(expected)


def test_polygons_are_drawn_on_the_pixels_of_run_lengths() -> None:
    grid = np.zeros((20, 10), dtype=bool)
    grid[2:10, 1:5] = True  # in 0-1000: x 100-500, y 100-500
    assert value(runs(grid), json.dumps(SQUARE)) == 1
    assert (
        value(runs(grid), json.dumps([[1, 2], [5, 2], [5, 10], [1, 10]]), "qwen2_5_vl", resized_size=[10, 20])
        == 1
    )
    assert value(runs(grid), json.dumps([[0, 0], [1000, 0], [1000, 1000], [0, 1000]])) == pytest.approx(0.16)


def test_frames_are_converted_by_the_sizes() -> None:
    gold = {"polygons": [[[10, 20], [50, 20], [50, 100], [10, 100]]], "frame": "pixel_original"}
    assert value(gold, json.dumps(SQUARE), image_size=[100, 200]) == 1
    twice = [[20, 40], [100, 40], [100, 200], [20, 200]]
    assert value(gold, json.dumps(twice), "qwen2_5_vl", image_size=[100, 200], resized_size=[200, 400]) == 1
    with pytest.raises(ValueError, match="image_size"):
        value(gold, json.dumps(SQUARE))


def test_a_far_corner_does_not_make_the_grid_coarse() -> None:
    gold = [[100, 100], [102, 100], [102, 102], [100, 102]]
    sloppy = json.dumps(
        [[[90, 90], [120, 90], [120, 120], [90, 120]], [[999, 999], [1000, 999], [999, 1000]]]
    )
    assert value(gold, sloppy) < 0.01


def test_nothing_to_outline() -> None:
    for gold in ([], {"polygons": []}, {"size": [4, 4], "counts": [16]}):
        assert value(gold, "There is no cat.") == 1
        assert value(gold, "[]") == 1
        assert value(gold, json.dumps(SQUARE)) == 0
        assert value(gold, "") == 0


@pytest.mark.parametrize(
    "gold",
    [
        3,
        "outline",
        [1, 2, 3, 4],
        [[1, 2], [3, 4]],
        {"box": [1, 2, 3, 4]},
        {"size": [4, 4], "counts": [15]},
        {"size": [4, 4], "counts": [20, -4]},
        {"size": [4], "counts": [16]},
        {"size": [10**5, 10**5], "counts": [10**10]},
        {"size": [4, 4], "counts": "é"},
        {"size": [4, 4], "counts": "oo"},
        [[1, 2], [3, 4], [5, 2000]],
        [{"size": [1, 1], "counts": [0, 1]}, {"size": [2, 1], "counts": [0, 2]}],
        [{"size": [1, 1], "counts": [0, 1]}, SQUARE],
        [[1, 2], [3, 4], [True, 6]],
    ],
)
def test_faults_of_the_dataset_are_named(gold: Any) -> None:
    with pytest.raises(ValueError, match="ground_truth"):
        value(gold, json.dumps(SQUARE))


def test_wrong_parameters_are_refused_and_no_gold_does_not_apply() -> None:
    with pytest.raises(ValueError, match="none of"):
        value(SQUARE, "", "llava")
    assert mask_iou(RewardInput((), (), json.dumps(SQUARE)), family="qwen3_vl") is None


@given(TEXT)
def test_any_text_is_judged(text: str) -> None:
    assert 0 <= value(SQUARE, text) <= 1


@pytest.mark.parametrize("unit", ["[", "{", "(1,2),", "[1,2],", "9", "[[", '{"counts":', "1,", '"'])
def test_long_answers_are_quick(unit: str) -> None:
    start = time.process_time()
    value(SQUARE, unit * (10**6 // len(unit)))
    assert time.process_time() - start < 3


def test_hostile_polygons_are_bounded() -> None:
    zigzag = [[n % 2 * 1000, n % 3 * 500] for n in range(5000)]
    start = time.process_time()
    assert value(SQUARE, json.dumps(zigzag)) < 1
    assert value(runs(np.ones((10, 10))), json.dumps({"size": [10, 10], "counts": "0" * 90_000})) == 0
    assert time.process_time() - start < 3
    with pytest.raises(MaskError, match="pixels"):
        read_mask([{"size": [4096, 4096], "counts": [2**24]}] * 2)
