"""The action space of screens, and the tiny desktop: solvable, honest, and as data and rewards know it."""

import contextlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from PIL import ImageChops

from posttrain.data.formats import read_canonical
from posttrain.types import RewardInput, Sample, text_message
from rewards.builtin.gui import gui_action
from rewards.reading.actions import action_of
from tools_env.devices import act_of, called, device_tool, in_frame
from tools_env.environment import ToolEnvironment
from tools_env.hermes import parse_calls
from tools_env.kit.check import check_plugin
from tools_env.loading import load_game
from tools_env.play.desktop import Desktop, played_turn
from tools_env.play.rows import write
from tools_env.play.screen import SIZE, draw, widgets
from tools_env.sdk import ToolError, ToolResult

REFERENCE = "tools_env.play.desktop:Desktop"
DEVICES = pytest.mark.parametrize("device", ["desktop", "phone"])
POINTING = "mouse_move left_click left_click_drag right_click middle_click double_click triple_click".split()
#: Arguments of every action of the two devices.
ACTIONS: dict[str, list[dict[str, Any]]] = {
    "desktop": [
        {"action": "key", "keys": ["ctrl", "c"]},
        {"action": "type", "text": "abc"},
        *({"action": name, "coordinate": [500, 250]} for name in POINTING),
        {"action": "scroll", "pixels": -40},
        {"action": "hscroll", "pixels": 40},
        {"action": "wait", "time": 1},
        {"action": "terminate", "status": "failure"},
        {"action": "answer", "text": "7"},
    ],
    "phone": [
        {"action": "key", "text": "power"},
        {"action": "click", "coordinate": [500, 250]},
        {"action": "long_press", "coordinate": [500, 250], "time": 2},
        {"action": "swipe", "coordinate": [500, 800], "coordinate2": [500, 200]},
        {"action": "type", "text": "abc"},
        {"action": "system_button", "button": "Back"},
        {"action": "open", "text": "Notes"},
        {"action": "wait", "time": 1},
        {"action": "terminate", "status": "success"},
        {"action": "answer", "text": "7"},
    ],
}


def begun(seed: object, **params: Any) -> Desktop:
    desktop = Desktop(**params)
    desktop.start(Sample("row", (text_message("user", "?"),), columns={"seed": seed}))
    return desktop


def with_task(kind: str, **params: Any) -> Desktop:
    return next(each for seed in range(99) if (each := begun(seed, **params)).task.kind == kind)


def click(desktop: Desktop, name: str, action: str = "left_click") -> ToolResult | None:
    (widget,) = [each for each in widgets(desktop.state) if each.name == name]
    return do(desktop, action, coordinate=in_frame(widget.centre, SIZE, desktop.frame))


def do(desktop: Desktop, action: str, **arguments: Any) -> ToolResult | None:
    return desktop.call(desktop.specs[0].name, {"action": action, **arguments}, [])


@DEVICES
@pytest.mark.parametrize("frame", ["norm_1000", "pixel_original"])
def test_a_good_player_solves_every_task_and_each_step_changes_the_screen(device: Any, frame: Any) -> None:
    kinds = set()
    for seed in range(15):
        desktop, turns = begun(seed, device=device, frame=frame), 0
        assert not desktop.is_solved()
        shown = desktop.shown().images[0]
        while (result := played_turn(desktop, desktop.moves()[0][0])) is not None:
            assert ImageChops.difference(shown, result.images[0]).getbbox(), desktop.next_move()
            shown, turns = result.images[0], turns + 1
            assert 0 < desktop.rewards()["progress"] <= 1
        assert turns <= 6
        assert desktop.rewards() == {"solved": 1.0, "progress": 1.0, "reported": 1.0}
        kinds.add(desktop.task.kind)
    assert kinds == {"note", "switch", "count"}


def test_a_good_player_mends_what_a_careless_one_did() -> None:
    for seed in range(25):
        desktop, rng = begun(seed), random.Random(seed)
        for _ in range(12):
            if played_turn(desktop, rng.choice(desktop.moves()[1])) is None:
                break
        for _ in range(14):
            if played_turn(desktop, desktop.moves()[0][0]) is None:
                break
        assert desktop.rewards()["solved"] == 1.0, desktop.task


@DEVICES
def test_every_published_action_is_served_and_is_what_the_reward_takes_it_for(device: Any) -> None:
    spec = device_tool(device, SIZE)
    Draft202012Validator.check_schema(spec.parameters)
    names = [each["action"] for each in ACTIONS[device]]
    assert names == [name for name in names if name in spec.parameters["properties"]["action"]["enum"]]
    assert set(names) == set(spec.parameters["properties"]["action"]["enum"])
    for arguments in ACTIONS[device]:
        Draft202012Validator(spec.parameters).validate(arguments)
        act, read = act_of(arguments, device, SIZE), action_of({"name": spec.name, "arguments": arguments})
        assert read is not None
        assert read.kind == act.kind, arguments
        if act.kind == "scroll" and act.down:
            assert read.direction == ("down" if act.down > 0 else "up")
        if act.point is not None and read.points:
            assert in_frame(act.point, SIZE, "norm_1000") == list(read.points[0])
        assert (act.kind != "terminate") or (read.status == "success") == act.succeeded


def test_the_words_are_the_cookbooks() -> None:
    computer, phone = device_tool("desktop", SIZE), device_tool("phone", (400, 800), "pixel_original")
    assert (computer.name, phone.name) == ("computer_use", "mobile_use")
    assert "* The screen's resolution is 1000x1000.\n" in computer.description
    assert "* The screen's resolution is 400x800.\n" in phone.description
    assert computer.parameters["required"] == phone.parameters["required"] == ["action"]
    assert computer.parameters["properties"]["pixels"]["description"] == (
        "The amount of scrolling to perform. Positive values scroll up, negative values scroll down. "
        "Required only by `action=scroll` and `action=hscroll`."
    )
    with pytest.raises(ValueError, match="there are desktop and phone"):
        device_tool("watch", SIZE)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"action": "left_click"}, "needs coordinate"),
        ({"action": "left_click", "coordinate": [1]}, "two numbers"),
        ({"action": "left_click", "coordinate": [True, 3]}, "two numbers"),
        ({"action": "left_click", "coordinate": [1001, 3]}, "beside the screen, which is 1000x1000"),
        ({"action": "left_click", "coordinate": [-1, 3]}, "beside the screen"),
        ({"action": "type"}, "needs text"),
        ({"action": "key", "keys": []}, "needs keys"),
        ({"action": "scroll", "pixels": 0}, "needs pixels"),
        ({"action": "terminate"}, "needs status"),
    ],
)
def test_what_is_missing_is_told(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ToolError, match=told):
        begun(0).call("computer_use", arguments, [])


def test_a_wrong_note_or_another_switch_does_not_count() -> None:
    desktop = with_task("note")
    click(desktop, "icon Notes", "double_click")
    do(desktop, "type", text="lost, for nothing has the focus")
    click(desktop, "field")
    do(desktop, "type", text="wrong")
    click(desktop, "Save")
    assert [each.name for each in widgets(desktop.state)] == ["Yes", "No"]
    click(desktop, "Yes")
    assert (desktop.state.saved, desktop.rewards()["solved"]) == ("wrong", 0.0)
    do(desktop, "terminate", status="success")
    assert desktop.rewards()["reported"] == 0.0
    other = with_task("switch")
    click(other, "icon Settings", "double_click")
    for name in other.state.switches:
        click(other, f"switch {name}")
    assert other.rewards()["solved"] == 0.0
    do(other, "terminate", status="failure")
    assert other.rewards()["reported"] == 1.0


@pytest.mark.parametrize(("answer", "solved"), [("{}", 1.0), ("{}.", 1.0), ("about {}", 0.0), ("99", 0.0)])
def test_only_the_number_is_the_answer(answer: str, solved: float) -> None:
    desktop = with_task("count")
    assert do(desktop, "answer", text=answer.format(desktop.task.goal)) is None
    assert desktop.rewards()["solved"] == solved


def test_keys_do_what_buttons_do() -> None:
    desktop = with_task("note")
    click(desktop, "icon Notes", "double_click")
    click(desktop, "field")
    do(desktop, "type", text="no")
    do(desktop, "key", keys=["ctrl", "a"])
    do(desktop, "type", text=desktop.task.goal)
    do(desktop, "key", keys=["Ctrl", "S"])
    do(desktop, "key", keys=["enter"])
    assert desktop.rewards()["solved"] == 1.0


def test_no_two_things_lie_on_each_other_and_all_are_on_the_screen() -> None:
    for seed in range(30):
        desktop = begun(seed)
        for app in ("Notes", "Settings", "Files"):
            desktop.state.opened = app
            areas = [each.area for each in widgets(desktop.state)]
            for left, top, right, bottom in areas:
                assert 0 <= left < right < SIZE[0]
                assert 0 <= top < bottom < SIZE[1]
            for place, (left, top, right, bottom) in enumerate(areas):
                for other in areas[place + 1 :]:
                    apart = right < other[0] or other[2] < left or bottom < other[1] or other[3] < top
                    assert apart, (seed, app)
        assert draw(desktop.state).size == SIZE


@pytest.mark.parametrize("device", ["desktop", "phone"])
def test_it_passes_the_check_of_tools(device: str) -> None:
    report = check_plugin(REFERENCE, {"device": device}, right=[{"action": "wait", "time": 1}], turns=["hi"])
    assert report.passed, [each.failures for each in report.findings if each.failures]


KEYS = ("text", "coordinate", "coordinate2", "keys", "pixels", "status", "button")


def anything() -> Any:
    return st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=4,
    )


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["desktop", "phone"]),
    st.lists(st.tuples(st.integers(0, 13), st.dictionaries(st.sampled_from(KEYS), anything()))),
)
def test_whatever_is_asked_for_it_goes_on_or_says_why(device: Any, asked: list[Any]) -> None:
    desktop = begun(3, device=device)
    names = desktop.specs[0].parameters["properties"]["action"]["enum"]
    for number, arguments in asked:
        call = {"action": names[number % len(names)], **arguments}
        if not Draft202012Validator(desktop.specs[0].parameters).is_valid(call):
            continue
        with contextlib.suppress(ToolError):
            if desktop.call(desktop.specs[0].name, call, []) is None:
                break
    assert all(0 <= value <= 1 for value in desktop.rewards().values())


def test_an_episode_shows_a_screen_at_every_step_within_its_budget(tmp_path: Path) -> None:
    environment = ToolEnvironment([], 4, tmp_path, load_game(REFERENCE))
    seed = next(seed for seed in range(99) if begun(seed).task.kind == "note")
    (first,) = environment.start(
        Sample("row", (text_message("user", Desktop.rules),), columns={"seed": seed})
    )
    assert [block.type for block in first.content] == ["text", "text", "image"]
    told = environment.step("I look around.")
    assert told.message is not None
    assert told.message.role == "user"
    assert "computer_use" in told.message.text
    twin = begun(seed)
    for left in (2, 1):
        said = twin.moves()[0][0]
        played_turn(twin, said)
        reply = environment.step(said)
        assert reply.message is not None
        assert [block.type for block in reply.message.content] == ["image"]
        assert [call.name for call in reply.calls] == ["computer_use"]
        assert reply.message.role == "tool", left
    last = environment.step(twin.moves()[0][0])  # the budget ends before the note is saved
    assert (last.done, last.truncated) == (True, True)
    assert environment.close() == {"solved": 0.0, "progress": 0.75, "reported": 0.0}


def test_rows_of_single_actions_are_what_the_reward_takes(tmp_path: Path) -> None:
    write(tmp_path, game="desktop", kind="step", count=40, max_turns=6)
    seen = set()
    for sample in read_canonical(tmp_path / "data.jsonl"):
        gold = sample.ground_truth
        desktop = begun(sample.id.removeprefix("desktop-step-"))
        rng = random.Random(f"player/{sample.id}")
        for _ in range(rng.randrange(6)):
            if desktop.next_move().action not in ("terminate", "answer"):
                played_turn(desktop, desktop.turn(desktop.next_move()))
        good, others = desktop.moves()
        right = [good[0], json.dumps(parse_calls(good[0])[0].arguments)]
        inputs = [RewardInput(sample.messages, (), said, ground_truth=gold) for said in [*right, *others]]
        scores = [gui_action(each, family="qwen3_vl", tolerance=0.0) for each in inputs]
        values = [score.value if score is not None else -1.0 for score in scores]
        assert values[:2] == [1.0, 1.0], (gold, right)
        assert values[2:].count(1.0) <= 1
        seen.add(gold["action"])
    assert seen >= {"double_click", "left_click", "terminate"}
    assert len(seen) > 3
    with pytest.raises(ValueError, match="for the desktop"):
        write(tmp_path, game="maze", kind="step")


def test_played_rows_are_dialogues_of_calls_and_screens(tmp_path: Path) -> None:
    write(tmp_path, game="desktop", kind="played", count=6, max_turns=12, careless=0.0)
    for sample in read_canonical(tmp_path / "data.jsonl"):
        roles = [message.role for message in sample.messages]
        assert roles == ["user", *["assistant", "tool"] * ((len(roles) - 2) // 2), "assistant"]
        assert [getattr(each, "name", each) for each in sample.tools] == ["computer_use"]
        assert all(len(message.images) == 1 for message in sample.messages if message.role != "assistant")
        (call,) = parse_calls(sample.messages[-1].text)
        assert call.arguments["action"] in ("terminate", "answer")


def test_a_call_is_written_as_the_device_has_it() -> None:
    assert called("phone", "click", coordinate=[1, 2]) == {
        "name": "mobile_use",
        "arguments": {"action": "click", "coordinate": [1, 2]},
    }
