"""Reading boxes and points out of model text and ground truth."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from posttrain.types import Block, Box, ImageRef, Message, RewardInput
from rewards.reading.regions import Region, in_frame, read_gold, read_regions

NORM = "norm_1000"
BOX = Box(1, 2, 30, 40, NORM)
POINT = Box(5, 6, 5, 6, NORM)


@pytest.mark.parametrize(
    ("text", "regions"),
    [
        ("<|box_start|>(1,2),(30,40)<|box_end|>", [Region("box", BOX)]),
        (
            "<|object_ref_start|> a cat<|object_ref_end|><|box_start|>(1,2),(30,40)<|box_end|>"
            "<|box_start|>(5,6)<|box_end|>",
            [Region("box", BOX, "a cat"), Region("point", POINT, "a cat")],
        ),
        ('{"bbox_2d": [1, 2, 30, 40], "label": "a"}', [Region("box", BOX, "a")]),
        ('```json\n[{"bbox_2d": [1, 2, 30, 40], "label": "a"}]\n```', [Region("box", BOX, "a")]),
        ('Here: {"point_2d": [5, 6], "label": "a"}, see?', [Region("point", POINT, "a")]),
        ('{"a": {"b": [{"bbox_2d": [1, 2, 30, 40]}]}}', [Region("box", BOX)]),
        ('{"bbox_2d": [[1, 2, 30, 40], [30, 2, 1, 40]]}', [Region("box", BOX), Region("box", None)]),
        ('{"bbox_2d": [1, 2, 30, 40], "label": "{x}"}', [Region("box", BOX, "{x}")]),
        ('{"bbox_2d": [1, 2, 30, 40], "label": 7}', [Region("box", BOX)]),
        (
            '{"bbox_2d": [1, 2, 30, 40]} {"bbox_2d": [1, NaN, 3, 4]}',
            [Region("box", BOX), Region("box", None)],
        ),
        ('{"bbox_2d": [1, 2, 30, 40]} {"bbox_2d": [1, 2', [Region("box", BOX)]),
        ("[1, 2, 30, 40]", [Region("box", BOX)]),
        ("(1,2),(30,40) (5, 6)", [Region("box", BOX), Region("point", POINT)]),
        ('at [7, 7] {"bbox_2d": [1, 2, 30, 40]}', [Region("box", BOX)]),
        ("<think>[9, 9, 10, 10]</think>[5, 6]", [Region("point", POINT)]),
        ('{"bbox_2d": []}', [Region("box", None)]),
        ('{"point_2d": [1, 2, 3]}', [Region("point", None)]),
        ('{"bbox_2d": [1, 2, 1e-300, 3]}', [Region("box", None)]),
        ("{'bbox_2d': [1, 2, 30, 40], 'label': 'a'}", [Region("box", BOX, "a")]),
        ("{'bbox_2d': (1, 2, 30, 40), 'label': \"it's\",}", [Region("box", BOX, "it's")]),
        ("[{'point': [5, 6]}]", [Region("point", POINT)]),
        ('{"x1": 1, "y1": 2, "x2": 30, "y2": 40, "label": "a"}', [Region("box", BOX, "a")]),
        ('{"bbox": {"x1": 1, "y1": 2, "x2": 30, "y2": 40}, "label": "a"}', [Region("box", BOX, "a")]),
        ('{"action": "click", "coordinate": [5, 6]}', [Region("point", POINT)]),
        ('{"bbox_2d": "1, 2, 30, 40"}', [Region("box", None)]),
        ('{"bbox_2d": [1, 2, 30, 40], "bbox_2d": [5, 6, 7, 8]}', [Region("box", None)]),
        ("(1, 2, 30, 40)", [Region("box", BOX)]),
        ("1, 2, 30, 40", [Region("box", BOX)]),
        ("[1 2 30 40]", [Region("box", BOX)]),
        ("[1,2][30,40]", [Region("box", BOX)]),
        ("[[1, 2, 30, 40]]", [Region("box", BOX)]),
        ("[[5, 6], [5, 6]]", [Region("point", POINT), Region("point", POINT)]),
        ("\\left[1, 2, 30, 40\\right]", [Region("box", BOX)]),
        ("x1=1, y1=2, x2=30, y2=40", [Region("box", BOX)]),
        ("<ref>a</ref><box>(1,2),(30,40)</box>", [Region("box", BOX, "a")]),
        ("<|box_start|>[1, 2, 30, 40]<|box_end|>", [Region("box", BOX)]),
        ("<|box_start|>(1,2),(30,40),(5,6)<|box_end|>", [Region("box", None)]),
        ("<point>5 6</point>", [Region("point", POINT)]),
        ("click(point='<point>5 6</point>')", [Region("point", POINT)]),
        ("click(start_box='<|box_start|>(5,6)<|box_end|>')", [Region("point", POINT)]),
        ("pyautogui.click(x=5, y=6)", [Region("point", POINT)]),
        ("click(5, 6)", [Region("point", POINT)]),
        ('<point x="5" y="6" alt="a">a</point>', [Region("point", POINT, "a")]),
        ('<points x1="5" y1="6" x2="5.0" y2="6">a</points>', [Region("point", POINT, "a")] * 2),
        ("<point>5 6 7</point>", [Region("point", None)]),
        ('<point x="5">a</point>', [Region("point", None, "a")]),
        ("I saw [9, 9, 10, 10]. <answer>[1, 2, 30, 40]</answer>", [Region("box", BOX)]),
        ("I saw [9, 9, 10, 10]. \\boxed{[1, 2, 30, 40]}", [Region("box", BOX)]),
        ("I saw [9, 9, 10, 10]. The count is \\boxed{1}", [Region("box", Box(9, 9, 10, 10, NORM))]),
        ("[1, 2, 30, 40] <answer>nothing</answer>", []),
        ("nothing [1, 2, 3]", []),
        ("", []),
    ],
)
def test_read_regions(text: str, regions: list[Region]) -> None:
    assert read_regions(text, NORM) == regions


@given(st.text(), st.sampled_from(["", '{"bbox_2d": ', "<|box_start|>(", "```json\n["]))
def test_any_text_is_read(text: str, start: str) -> None:
    for region in read_regions(start + text, NORM):
        assert region.box is None or region.box.frame == NORM


numbers = st.lists(st.integers(0, 1000) | st.floats(allow_nan=True), max_size=5)


@given(st.lists(st.fixed_dictionaries({"bbox_2d": numbers, "label": st.text(max_size=5)})))
def test_every_keyed_object_is_counted(objects: list[Any]) -> None:
    written = "\n".join(json.dumps(item) for item in objects)
    braces = any("{" in item["label"] or "}" in item["label"] for item in objects)
    if not braces:
        assert len(read_regions(f"Boxes: {written}.", NORM)) == len(objects)


@pytest.mark.parametrize(
    "unit",
    [
        "[",
        "{",
        '{"bbox_2d": [',
        '{"bbox_2d"}',
        "```",
        '```"bbox_2d"',
        "(1,",
        "[1, 2, 3, 4] ",
        "<|box_start|>",
        "<|object_ref_start|>a",
        '"',
        '{"bbox_2d": [1, 2, 3, 4]}',
        "\\",
        " ",
        "9",
        "<think>",
        "((1, 2), ",
        '{"bbox_2d": "\\',
    ],
)
def test_a_megabyte_of_hostile_text_takes_little_time(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    start = time.process_time()
    read_regions(text, NORM)
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("ground_truth", "boxes", "points", "labels"),
    [
        ([1, 2, 30, 40], [BOX], [], None),
        ([[1, 2, 30, 40]], [BOX], [], None),
        ([5, 6], [], [POINT], None),
        ([[5, 6], (5, 6)], [], [POINT, POINT], None),
        ([], [], [], None),
        ({"boxes": [[1, 2, 30, 40]], "labels": ["a"]}, [BOX], [], ["a"]),
        (
            {"boxes": [[1, 2, 30, 40]], "frame": "pixel_original"},
            [Box(1, 2, 30, 40, "pixel_original")],
            [],
            None,
        ),
        ({"points": [[5, 6]], "labels": ["a"]}, [], [POINT], ["a"]),
    ],
)
def test_read_gold(ground_truth: Any, boxes: list[Box], points: list[Box], labels: Any) -> None:
    gold = read_gold(ground_truth, NORM)
    assert (gold.boxes, gold.points, gold.labels) == (boxes, points, labels)


@pytest.mark.parametrize(
    ("ground_truth", "message"),
    [
        ([30, 2, 1, 40], "box .* is not"),
        ([1, 2, 1, 40], "box .* is not"),
        ([1, 2, float("nan"), 40], "box .* is not"),
        ([1, 2, 3], "box .* is not"),
        ([[1, 2, 30, 40], [5, 6]], "box .* is not"),
        ("[1, 2, 30, 40]", "not a list"),
        (7, "not a list"),
        ({}, "needs 'boxes' or 'points'"),
        ({"boxes": {"a": 1}}, "boxes is .* not a list"),
        ({"boxes": [[1, 2, 30, 40]], "frame": "pixels"}, "frame 'pixels' is none of"),
        ({"boxes": [[1, 2, 30, 40]], "labels": []}, "labels must be 1"),
        ({"boxes": [[1, 2, 30, 40]], "labels": [3]}, "labels must be 1"),
        ({"points": [[1, "2"]]}, "point .* is not"),
    ],
)
def test_a_wrong_ground_truth_is_the_datasets_fault(ground_truth: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_gold(ground_truth, NORM)


def test_sizes_come_from_the_columns_or_the_first_image(tmp_path: Any) -> None:
    Image.new("RGB", (200, 100)).save(tmp_path / "a.png")
    prompt = (Message("user", (Block("image", image=ImageRef(str(tmp_path / "a.png"))),)),)
    box = [Box(20, 10, 100, 50, "pixel_original")]
    assert in_frame(box, NORM, RewardInput(prompt, (), "")) == [Box(100, 100, 500, 500, NORM)]
    columns = {"image_size": [400, 200], "resized_size": [800, 400]}
    x = RewardInput(prompt, (), "", columns=columns)
    assert in_frame(box, NORM, x) == [Box(50, 50, 250, 250, NORM)]
    assert in_frame(box, "pixel_resized", x) == [Box(40, 20, 200, 100, "pixel_resized")]
    assert in_frame(box, "pixel_original", RewardInput((), (), "")) == box


def test_missing_and_broken_sizes_name_the_column(tmp_path: Any) -> None:
    box = [Box(20, 10, 100, 50, "pixel_original")]
    with pytest.raises(ValueError, match="image_size"):
        in_frame(box, NORM, RewardInput((), (), ""))
    with pytest.raises(ValueError, match="resized_size"):
        in_frame(box, "pixel_resized", RewardInput((), (), "", columns={"image_size": [10, 10]}))
    for size in ([10], [10, 0], "10x10", [10.5, 10], [True, 10]):
        with pytest.raises(ValueError, match=r"image_size.*must be"):
            in_frame(box, NORM, RewardInput((), (), "", columns={"image_size": size}))
    prompt = (Message("user", (Block("image", image=ImageRef(str(tmp_path / "none.png"))),)),)
    with pytest.raises(ValueError, match="cannot be used"):
        in_frame(box, NORM, RewardInput(prompt, (), ""))
