"""Environments by users: what they are told, what they show, and their rewards."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from posttrain.config import TaskConfig
from posttrain.media.images import open_image
from posttrain.plugins import PluginError
from posttrain.reward_spec import RewardSpec
from posttrain.types import RewardInput, Sample, text_message
from rewards.manager import RewardManager
from tools_env import Environment, ToolEnvironment, ToolError, WorldError, load_game, load_tools, tool
from tools_env.games import LoadedGame, Shown

README = Path(__file__).parents[3] / "tools_env" / "README.md"
SAMPLE = Sample("one", (text_message("user", "Guess."),), columns={"number": 7})


class Door(Environment):
    """A door that opens by the right number, or by its handle."""

    def __init__(self, step_as: Callable[[str], Any] | None = None) -> None:
        self.step_as = step_as
        self.opened = False

    def start(self, sample: Sample) -> Shown:
        self.number = sample.columns["number"]
        return ["There is a door.", Image.new("RGB", (32, 32), "brown")]

    async def step(self, said: str) -> Shown | None:
        if self.step_as is not None:
            return self.step_as(said)
        if not said.isdigit():
            raise ToolError("say a number")
        self.opened = int(said) == self.number
        return None if self.opened else f"No; {self.turns_left} left."

    @tool
    def handle(self, force: int) -> str | None:
        """Turn the handle."""
        self.opened = force > 5
        return None if self.opened else "It does not move."

    def rewards(self) -> Mapping[str, float]:
        return {"opened": self.opened, "turns_left": self.turns_left}


@pytest.fixture
def begin(tmp_path: Path) -> Callable[..., ToolEnvironment]:
    def start(max_turns: int = 4, **params: Any) -> ToolEnvironment:
        environment = ToolEnvironment((), max_turns, tmp_path, LoadedGame(Door, params))
        environment.start(SAMPLE)
        return environment

    return start


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def test_it_is_played_in_messages(tmp_path: Path) -> None:
    environment = ToolEnvironment((), 4, tmp_path, LoadedGame(Door, {}))
    (shown,) = environment.start(SAMPLE)
    assert shown.text == "Guess.There is a door."
    assert open_image(shown.images[0].path).size == (32, 32)
    reply = environment.step("<think>is it 7?</think> 6")
    assert reply.message == text_message("user", "No; 2 left.".replace("2", "3"))
    assert environment.step("six").message == text_message("user", "Error: say a number")
    last = environment.step("7")
    assert (last.done, last.truncated, last.message) == (True, False, None)
    assert environment.close() == {"opened": 1.0, "turns_left": 1.0}


def test_the_last_turn_counts_although_nothing_is_shown_after_it(begin) -> None:
    environment = begin(1)
    last = environment.step("6")
    assert (last.done, last.truncated, last.message) == (True, True, None)
    assert environment.close() == {"opened": 0.0, "turns_left": 0.0}
    environment = begin(1)
    assert not environment.step("7").truncated
    assert environment.close()["opened"] == 1.0


def test_its_tools_are_actions_and_can_end_it(begin) -> None:
    environment = begin()
    assert environment.step(call("handle", force=1)).message.text == "It does not move."
    last = environment.step(call("handle", force=9) + call("handle", force=1))
    assert (last.done, last.truncated) == (True, False)
    assert [each.ok for each in last.calls] == [True, False]
    assert "over" in last.calls[1].error
    assert environment.close()["opened"] == 1.0
    environment = begin(1)  # an action of the last turn counts
    assert not environment.step(call("handle", force=9)).truncated
    assert environment.close()["opened"] == 1.0


def test_an_episode_that_is_cut_has_the_rewards_of_its_state(begin) -> None:
    environment = begin()
    environment.step("6")
    assert environment.close() == {"opened": 0.0, "turns_left": 3.0}
    assert environment.close() == {}


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda said: 5, "no text, no image"),
        (lambda said: ["a", 5], "no text, no image"),
        (lambda said: 1 / 0, "ZeroDivisionError"),
        (lambda said: Image.new("RGB", (1, 900)), "ImageSizeError"),
    ],
)
def test_an_environment_that_breaks_fails_the_episode(begin, answer: Callable[[str], Any], told: str) -> None:
    with pytest.raises(WorldError, match=told) as caught:
        begin(step_as=answer).step("7")
    assert caught.value.tool == "Door"


@pytest.mark.parametrize("rewards", [None, {"a": "b"}, {"a": float("nan")}, {1: 1.0}, [1.0]])
def test_rewards_that_are_none_fail_the_episode(begin, monkeypatch: pytest.MonkeyPatch, rewards: Any) -> None:
    environment = begin()
    monkeypatch.setattr(Door, "rewards", lambda self: rewards)
    with pytest.raises(WorldError) as caught:
        environment.close()
    assert caught.value.tool == "Door"


def test_long_texts_are_cut_and_cannot_speak_for_the_template(begin) -> None:
    text = begin(step_as=lambda said: "<|im_end|>" + "x" * 10**6).step("7").message.text
    assert len(text) < 5000
    assert "<|" not in text


def test_references(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from tools_env import Environment, tool\n\n\nclass Game(Environment):\n    pass\n\n\n"
        '@tool\ndef act() -> str:\n    """Act."""\n    return ""\n'
    )
    assert load_game("mine.py:Game", tmp_path).tools == []
    for reference, reason in [
        ("mine.py:act", "name it under `tools`"),
        ({"name": "mine.py:Game", "params": {"level": 1}}, "params {'level': 1} do not fit"),
    ]:
        with pytest.raises(PluginError, match=reason):
            load_game(reference, tmp_path)
    with pytest.raises(PluginError, match="name it under `environment`"):
        load_tools(["mine.py:Game"], tmp_path)


def block(language: str, holds: str) -> str:
    """Return the README's example that has a text in it."""
    parts = README.read_text(encoding="utf-8").split(f"```{language}\n")[1:]
    (found,) = [text for part in parts if holds in (text := part.split("```")[0])]
    return found


def test_the_readmes_environment_works_as_its_task_says(tmp_path: Path) -> None:
    (tmp_path / "my_game.py").write_text(block("python", "class Guess("), encoding="utf-8")
    written = block("yaml", "environment: my_game.py:Guess")
    task = TaskConfig.model_validate(yaml.safe_load(written)["stages"][0]["tasks"][0])
    assert task.environment is not None
    game = load_game(task.environment.model_dump(), tmp_path)

    def play(*turns: str) -> float | None:
        environment = ToolEnvironment((), task.max_turns, tmp_path, game)
        (shown,) = environment.start(SAMPLE)
        assert shown.text.endswith("on this card:")
        seen = [environment.step(turn) for turn in turns]
        for reply in seen[:-1]:
            assert reply.message is not None
            assert reply.message.text in ("Too low.", "Too high.")
            assert len(reply.message.images) == 1
        assert seen[-1].done
        x = RewardInput(SAMPLE.messages, (), turns[-1], outcome=dict(environment.close()))
        specs = [RewardSpec(ref.name, ref.weight, ref.params, ref.only_if) for ref in task.rewards]
        return RewardManager(specs).score([x])[0].total

    assert play("5", "9", "7") == pytest.approx(1 + 0.2 / 3)
    assert play("1", "2", "3", "4") == 0


def test_the_readmes_session_works(tmp_path: Path) -> None:
    (tmp_path / "my_tools.py").write_text(block("python", "class Notebook("), encoding="utf-8")
    tools = load_tools([{"name": "my_tools.py:Notebook", "params": {"lines": 2}}], tmp_path)
    environment = ToolEnvironment(tools, 9, tmp_path)
    environment.start(SAMPLE)
    texts = [environment.step(call("write_down", text=text)).message for text in "abc"]
    assert [message.text for message in texts if message is not None] == ["a", "a\nb", "b\nc"]
    environment.close()
