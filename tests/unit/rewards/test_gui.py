"""Actions on a screen: every family's way to write them, and the rules by which they are compared."""

import json
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.types import RewardInput, ToolCall
from rewards.builtin.gui import gui_action
from rewards.reading.actions import answered_actions

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
COORDINATE = st.integers(0, 1000)
BOX = [100, 200, 300, 400]


def value(gold: Any, answer: str, family: str = "qwen3_vl", **params: Any) -> float:
    score = gui_action(RewardInput((), (), answer, ground_truth=gold), family=family, **params)
    assert score is not None
    return score.value


def call(name: str = "computer_use", **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def clicks(x: int, y: int) -> list[str]:
    """A click at this point, in many ways."""
    return [
        call(action="left_click", coordinate=[x, y]),
        call("mobile_use", action="click", coordinate=[x, y]),
        call("click", x=x, y=y),
        "I open the menu.\n" + call(action="left_click", coordinate=[x, y]),
        json.dumps({"action": "click", "coordinate": [x, y]}),
        json.dumps({"action_type": "click", "x": x, "y": y}),
        json.dumps({"action": "CLICK", "value": None, "position": [x, y]}),
        json.dumps({"type": "click", "x": x, "y": y}),
        f"```json\n{json.dumps([{'action': 'tap', 'point': [x, y]}])}\n```",
        f"Thought: The menu.\nAction: click(start_box='({x},{y})')",
        f"Action: click(start_box='<|box_start|>({x},{y})<|box_end|>')",
        f"Action: click(point='<point>{x} {y}</point>')",
        f"left_single(start_box='[{x - 5}, {y - 5}, {x + 5}, {y + 5}]')",
        f"pyautogui.click(x={x}, y={y})",
        f"```python\nimport pyautogui\npyautogui.click({x}, {y})\n```",
        f"<think>click(start_box='(0,0)')</think>click(x={x}, y={y})",
        f"<answer>[{{'action': 'click', 'point': [{x}, {y}], 'input_text': 'no input text'}}]</answer>",
        f"CLICK(box=[[{x - 5},{y - 5},{x + 5},{y + 5}]], element_info='the menu')",
        f"actions:\nCLICK <point>[[{x}, {y}]]</point>",
        f'I see it. *FUNCTION*: Tap *ARGS*: {{"point": ({x},{y})}}',
        f'*FUNCTION*: Click *ARGS*: {{"point": " ({x}, {y})"}}\n*RESULT*',
        f'✿FUNCTION✿: computer_use\n✿ARGS✿: {{"action": "left_click", "coordinate": [{x}, {y}]}}',
        f"({x}, {y})",
        f'{{"point_2d": [{x}, {y}], "label": "menu"}}',
        f"[{x - 5}, {y - 5}, {x + 5}, {y + 5}]",
    ]


@given(COORDINATE.filter(lambda x: x >= 10), COORDINATE.filter(lambda y: y >= 10))
def test_a_click_in_the_box_is_right_in_every_form(x: int, y: int) -> None:
    expected = float(BOX[0] <= x <= BOX[2] and BOX[1] <= y <= BOX[3])
    for answer in clicks(x, y):
        assert value(BOX, answer) == expected, answer
        assert value({"action": "click", "box": BOX}, answer) == expected
        assert value([{"bbox": [900, 900, 901, 901]}, {"box": BOX}], answer) == expected


@given(COORDINATE, COORDINATE, COORDINATE, COORDINATE, st.sampled_from([0.04, 0.14]))
def test_the_distance_is_that_of_android_in_the_wild(
    a: int, b: int, c: int, d: int, tolerance: float
) -> None:
    apart = np.linalg.norm(np.array([a, b]) / 1000 - np.array([c, d]) / 1000)
    if abs(apart - tolerance) > 1e-6:
        answer = call("mobile_use", action="click", coordinate=[a, b])
        gold = {"action": "click", "coordinate": [c, d]}
        assert value(gold, answer, tolerance=tolerance) == (apart <= tolerance)
        in_box = {**gold, "box": [max(0, a - 1), max(0, b - 1), a + 1, b + 1]}
        assert value(in_box, answer, tolerance=tolerance) == 1  # in the box, however far


@pytest.mark.parametrize(
    ("gold", "right", "wrong"),
    [
        ({"action": "type", "text": "red shoes"}, "type(content='Red  shoes')", "type(content='blue hat')"),
        ({"action": "type", "text": "it's"}, r"type(content='it\'s')", "type(content='hers')"),
        (
            {"action": "type", "text": "a (b), c"},
            "pyautogui.write('a (b), c', interval=0.1)",
            "pyautogui.press('a')",
        ),
        ({"action": "key", "keys": ["ctrl", "c"]}, "hotkey(key='ctrl c')", "hotkey(key='ctrl v')"),
        ({"action": "key", "keys": ["ctrl", "c"]}, "pyautogui.hotkey('ctrl', 'c')", "pyautogui.hotkey('c')"),
        (
            {"action": "key", "keys": ["enter"]},
            call(action="key", keys=["Return"]),
            call(action="key", keys=["esc"]),
        ),
        ({"action": "system_button", "button": "Back"}, "press_back()", "press_home()"),
        ("press_home()", '{"action_type": "navigate_home"}', '{"action_type": "navigate_back"}'),
        (
            {"action": "scroll", "direction": "down"},
            "scroll(point='<point>5 5</point>', direction='down')",
            "scroll(direction='up')",
        ),
        (
            {"action": "scroll", "direction": "down"},
            call(action="scroll", pixels=-300),
            call(action="scroll", pixels=300),
        ),
        (
            {"action": "scroll", "direction": "down"},
            call("mobile_use", action="swipe", coordinate=[500, 800], coordinate2=[500, 200]),
            call("mobile_use", action="swipe", coordinate=[500, 200], coordinate2=[500, 800]),
        ),
        ({"action": "scroll", "direction": "right"}, "swipe(direction='left')", "swipe(direction='right')"),
        (
            {"action": "scroll", "direction": "down"},
            "drag(start_box='(500,800)', end_box='(510,200)')",
            "click(x=1, y=1)",
        ),
        (
            {"action": "drag", "start_point": [100, 100], "end_point": [800, 800]},
            "drag(start_box='(110,100)', end_box='(800,790)')",
            "drag(start_box='(110,100)', end_box='(300,790)')",
        ),
        (
            {"action": "open_app", "app_name": "Chrome"},
            call("mobile_use", action="open", text="chrome"),
            "open_app(app_name='Gmail')",
        ),
        ({"action": "wait"}, call(action="wait", time=2), "finished()"),
        (
            {"action": "terminate", "status": "success"},
            "finished(content='It is done.')",
            call(action="terminate", status="failure"),
        ),
        (
            {"action": "status", "goal_status": "infeasible"},
            call(action="terminate", status="failure"),
            "finished()",
        ),
        (
            {"action": "answer", "text": "42 km"},
            call(action="answer", text="42 km"),
            call(action="answer", text="7"),
        ),
        (
            {"action": "long_press", "coordinate": [5, 5]},
            "long_press(start_box='(6,6)')",
            "click(start_box='(6,6)')",
        ),
        (
            {"action": "right_click", "box": BOX},
            "pyautogui.click(150, 250, button='right')",
            "pyautogui.click(150, 250)",
        ),
        (
            {"action": "double_click", "box": BOX},
            "left_double(start_box='(150,250)')",
            "click(start_box='(150,250)')",
        ),
        (
            {"action": "double_click", "box": BOX},
            "pyautogui.click(150, 250, clicks=2)",
            "pyautogui.click(150, 250)",
        ),
        ({"action": "type", "text": "red shoes"}, "actions:\nTYPE [red shoes]", "actions:\nTYPE [hat]"),
        ({"action": "scroll", "direction": "down"}, "SCROLL [DOWN]", "SCROLL [UP]"),
        ("press_back()", "actions:\nPRESS_BACK", "actions:\nPRESS_HOME"),
        ({"action": "terminate", "status": "success"}, "COMPLETE", "IMPOSSIBLE"),
        ({"action": "open", "text": "Chrome"}, "OPEN_APP [Chrome]", "OPEN_APP [Clock]"),
        (
            "[{'action': 'type', 'input_text': 'red shoes'}]",
            "{'action': 'type', 'text': 'red shoes'}",
            "{'action': 'wait'}",
        ),
        (["wait()", "press_back()"], "press_back()", "press_home()"),
    ],
)
def test_kinds_and_arguments(gold: Any, right: str, wrong: str) -> None:
    assert value(gold, right) == 1
    assert value(gold, wrong) == 0
    if not isinstance(gold, list):
        assert value([gold, "wait()"], right) == 1


@pytest.mark.parametrize(
    ("metric", "answer", "expected"),
    [
        ("f1", "red shoes size 9", 2 / 3),
        ("f1", "shoes red", 1),
        ("anls", "red shoe", 8 / 9),
        ("anls", "blue hat", 0),
        ("exact", "RED shoes", 1),
        ("exact", "red shoe", 0),
    ],
)
def test_texts_by_three_measures(metric: str, answer: str, expected: float) -> None:
    found = value({"action": "type", "text": "red shoes"}, call(action="type", text=answer), text=metric)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "I click the menu.",
        "click(x=150, y=250)\nclick(x=10, y=10)",
        call(action="left_click", coordinate=[150, 250]) + call(action="left_click", coordinate=[10, 10]),
        "(150, 250) or (10, 10)",
        call(action="left_click"),
        "click(x=nan, y=250)",
        "click(x=150, y=250",
        "double_click(x=150, y=250",
        "pyautogui.rightClick(x=150, y=250",
        "pyautogui.zoom(x=150, y=250)",
        "drag(start_box='(150,250)'",
        '{"action": "double_click", "coordinate": [150, 250]',
        '{"action": "zoom", "coordinate": [150, 250]}',
        '<tool_call>{"name": "zoom", "arguments": {"point_2d": [150, 250]}}</tool_call>',
        "double_click(x=150, y=250)",
    ],
)
def test_no_action_or_several_or_another(answer: str) -> None:
    assert value(BOX, answer) == 0


def test_parts_say_what_was_wrong() -> None:
    score = gui_action(RewardInput((), (), "click(x=1, y=1)", ground_truth=BOX), family="qwen3_vl")
    assert score is not None
    assert score.parts == {"type": 1, "place": 0, "arguments": 1}


def test_the_last_tool_call_counts_where_the_answer_has_no_action() -> None:
    used = ToolCall("computer_use", {"action": "left_click", "coordinate": [150, 250]}, ok=True)
    x = RewardInput((), (), "Done.", ground_truth=BOX, tool_calls=(ToolCall("zoom", {}, ok=True), used))
    score = gui_action(x, family="qwen3_vl")
    assert score is not None
    assert score.value == 1


def test_frames_are_converted_by_the_sizes() -> None:
    gold = {"action": "click", "box": [10, 20, 30, 40], "frame": "pixel_original"}
    columns = {"image_size": [100, 200], "resized_size": [200, 400]}
    for family, point in (("qwen3_vl", [200, 150]), ("qwen2_5_vl", [40, 60]), ("qwen2_vl", [200, 150])):
        x = RewardInput(
            (), (), call(action="left_click", coordinate=point), ground_truth=gold, columns=columns
        )
        score = gui_action(x, family=family)
        assert score is not None
        assert score.value == 1
    with pytest.raises(ValueError, match="image_size"):
        value(gold, "click(x=1, y=1)")


@pytest.mark.parametrize(
    ("gold", "params", "message"),
    [
        ([], {}, "empty list"),
        (3, {}, "no action"),
        ("go on", {}, "no action"),
        ({"action": "jump"}, {}, "no action"),
        ({"action": "click"}, {}, "needs a box"),
        ({"action": "click", "box": [3, 3, 1, 1]}, {}, "x1 < x2"),
        ([5, 5], {}, "no box"),
        ("click(x=1, y=1) wait()", {}, "no action"),
        (BOX, {"family": "llava"}, "none of"),
        (BOX, {"tolerance": 14}, "tolerance"),
        (BOX, {"text": "bleu"}, "f1, anls or exact"),
    ],
)
def test_faults_are_named(gold: Any, params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        value(gold, "click(x=1, y=1)", **params)


def test_without_a_gold_it_does_not_apply() -> None:
    assert gui_action(RewardInput((), (), "click(x=1, y=1)"), family="qwen3_vl") is None


@given(TEXT)
def test_any_text_is_judged(text: str) -> None:
    assert value(BOX, text) in (0, 1)
    assert 0 <= value({"action": "type", "text": "red"}, call(action="type", text=text)) <= 1
    assert len(answered_actions(f"type(content={text!r})")) <= 1 or ")" in text


@pytest.mark.parametrize(
    "unit",
    [
        "click(",
        "click(x=1, y=1) ",
        "CLICK [",
        "\nTYPE [a]",
        "<tool_call>{",
        "{",
        "{{{}",
        "{a",
        "'",
        "click('",
        "(1,",
        "click(x=[",
        "\\'",
        "a.",
    ],
)
def test_long_answers_are_quick(unit: str) -> None:
    start = time.process_time()
    value(BOX, unit * (10**6 // len(unit)))
    assert time.process_time() - start < 4
