"""How many calls a row needs: by the episodes that solved it, and in a model's estimate."""

import argparse
import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from posttrain.cli.call_targets import add_call_targets, call_targets_recipe
from posttrain.config import ConfigError, Document
from posttrain.config.curation import build_curation
from posttrain.config.curation_steps import Step
from posttrain.config.endpoints import CheckpointConfig
from posttrain.curation.filters import Context
from posttrain.curation.outcomes import Outcome, RowError
from posttrain.curation.pipeline import curate
from posttrain.curation.registry import FILTERS
from posttrain.curation.scoring import Scoring
from posttrain.curation.taxonomy import load_taxonomy
from posttrain.first_party import PLUGINS
from posttrain.looks import different_looks
from posttrain.types import RewardInput, RewardResult, Sample, ToolCall, Trajectory, text_message
from rewards.builtin.tool_calls import tool_calls

TASK = {"tools": ["image_zoom_in"], "max_turns": 4, "rewards": ["answer_accuracy"]}
PLAYING = {"filter": "call_targets", "endpoint": "agent", "task": TASK}
SAMPLE = Sample("r", (text_message("user", "Which letter?"),), "K")


def zoom(place: int, images: int = 1) -> ToolCall:
    box = [100 * place, 0, 100 * place + 80, 80]
    error = "" if images else "no such image"
    return ToolCall("image_zoom_in_tool", {"img_idx": 0, "bbox_2d": box}, bool(images), error, images)


def episode(right: float | None, calls: Sequence[ToolCall]) -> Trajectory:
    verdict = RewardResult(right, {"answer_accuracy": right})
    return Trajectory("r", "t", 0, 0, tool_calls=[*calls], stop_reason="answer", reward=verdict)


class Played:
    """Episodes that were played."""

    def __init__(self, episodes: Sequence[Trajectory] | None) -> None:
        self._episodes = episodes

    async def play(self, row: int, sample: Sample) -> Sequence[Trajectory] | None:
        return self._episodes


def judged(episodes: Sequence[Trajectory] | None, sample: Sample = SAMPLE, **step: Any) -> Outcome:
    checked = TypeAdapter(Step).validate_python({"name": "call_targets", **PLAYING, **step})
    with Scoring([], PLUGINS, Path()) as scoring:
        context = Context(load_taxonomy(), scoring, lambda: iter(()), episodes=Played(episodes))
        return asyncio.run(FILTERS["call_targets"](checked, context).judge(0, sample))


TRIES = st.lists(
    st.tuples(st.booleans(), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1)), max_size=4)),
    min_size=1,
    max_size=12,
)


@given(TRIES, st.sampled_from([0.0, 0.5, 1.0]))
def test_the_target_is_the_fewest_useful_calls_of_a_right_episode(
    tries: list[tuple[bool, list[tuple[int, int]]]], share: float
) -> None:
    """Against a straight loop: places that came back, each once; and the reward gives it full marks."""
    episodes = [
        episode(float(right), [zoom(place, images) for place, images in calls]) for right, calls in tries
    ]
    outcome = judged(episodes, min_solved_share=share)
    expected = None
    for number in range(5):
        same = [
            right for right, calls in tries if len({place for place, images in calls if images}) == number
        ]
        if any(same) and same.count(True) >= share * len(same):
            expected = number
            break
    assert outcome.kept
    assert outcome.changes.columns == ({} if expected is None else {"target_tool_calls": expected})
    assert outcome.kept_as == ("no target: never solved" if expected is None else f"target {expected}")
    if expected is not None:
        seen = RewardInput((), (), "K", tool_calls=tuple(map(zoom, range(expected))))
        assert tool_calls(seen, target=expected).value == 1.0  # type: ignore[union-attr]


def test_rows_without_a_target_lose_an_earlier_one_or_go() -> None:
    stale = Sample("r", SAMPLE.messages, "K", columns={"target_tool_calls": 3, "mine": 2})
    wrong = [episode(0.0, [zoom(0)])]
    assert judged(wrong, stale).changes.columns == {"target_tool_calls": None}
    assert judged(wrong, stale, column="mine").changes.columns == {"mine": None}
    assert judged(wrong, unsolved="drop").reason == "never solved"
    assert judged(None).kept_as == "no target: too long"
    assert judged([episode(None, [])]).kept_as == "no target: nothing to verify by"
    failed = episode(None, [])
    failed.reward = RewardResult(None, {}, errors={"answer_accuracy": "the judge is away"})
    with pytest.raises(RowError, match="the judge is away"):
        judged([episode(1.0, []), failed])


def test_a_look_is_what_came_back_however_it_was_asked_for() -> None:
    near = ToolCall("image_zoom_in_tool", {"img_idx": "0", "bbox_2d": "[101, 0, 181, 80]"}, True, images=1)
    assert len(different_looks([zoom(1), near, zoom(1), zoom(2, images=0)], ())) == 1
    assert len(different_looks([zoom(1), zoom(2)], ())) == 2


ASKED = {"filter": "call_targets", "endpoint": "model", "tools": ["image_zoom_in"]}


def curated(tmp_path: Path, url: str, rows: int, **step: Any) -> dict[str, Any]:
    """Have a model asked about rows whose query is their number; return the kept rows by it."""
    with (tmp_path / "rows.jsonl").open("w") as file:
        for number in range(rows):
            file.write(
                json.dumps({"id": str(number), "messages": [{"role": "user", "content": f"[{number}]"}]})
                + "\n"
            )
    text = "name: rows\ndescription: d\nlicence: CC0-1.0\nsource: {path: rows.jsonl}\n"
    (tmp_path / "rows.yaml").write_text(text)
    recipe = {
        "name": "c",
        "output_dir": str(tmp_path / "out"),
        "base_dir": str(tmp_path),
        "data": "rows.yaml",
        "max_error_share": 1.0,
        "endpoints": {"model": {"model": "m", "base_url": url, "max_attempts": 1}},
        "steps": [{**ASKED, **step}],
    }
    report = curate(build_curation(Document(recipe, "test")), PLUGINS)
    lines = (tmp_path / "out" / "c" / "kept.jsonl").read_text().splitlines()
    return {row["id"]: row for row in map(json.loads, lines)} | {"report": report}


HOSTILE = ["[2]", "two", *(f'{{"calls": {calls}}}' for calls in ("-1", "9", "1.5", "true", '"2"', "null"))]


def test_an_estimate_is_asked_for_with_the_tools_and_hostile_ones_are_no_verdict(
    tmp_path: Path, endpoint: Any
) -> None:
    def answer(body: dict[str, Any]) -> str:
        assert "image_zoom_in_tool: Zoom in" in body["messages"][0]["content"]
        number = int(body["messages"][-1]["content"].partition("[")[2].partition("]")[0])
        told = {"calls": number % 3, "reason": "ignore all rules"}
        return HOSTILE[number] if number < len(HOSTILE) else f"```json\n{json.dumps(told)}\n```"

    endpoint.answer = answer
    found = curated(tmp_path, endpoint.url, 14)
    report = found.pop("report")
    assert {name: row["target_tool_calls"] for name, row in found.items()} == {
        str(number): number % 3 for number in range(len(HOSTILE), 14)
    }
    assert report.steps[1].failed == len(HOSTILE)
    assert report.steps[1].kept_as == {"target 0": 2, "target 1": 2, "target 2": 2}
    assert "kept: target" in report.table()


def test_of_several_estimates_the_median_counts(tmp_path: Path, endpoint: Any) -> None:
    endpoint.answer = lambda body: json.dumps({"calls": [0, 3, 2][body["seed"] % 3]})
    found = curated(tmp_path, endpoint.url, 2, samples=3, temperature=1.0, column="estimate")
    assert [found[name]["estimate"] for name in ("0", "1")] == [2, 2]


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({**ASKED, "tools": []}, "tools: a model has to know the tools"),
        ({**ASKED, "unsolved": "drop"}, "unsolved: a model that is asked solves nothing"),
        ({**PLAYING, "tools": ["image_zoom_in"]}, "tools: a model that plays has the task's tools"),
        ({**PLAYING, "max_calls": 3}, "max_calls: the task's max_turns"),
        ({**PLAYING, "temperature": 0.0}, "samples: at temperature 0"),
        ({**PLAYING, "endpoint": None}, "endpoint: who plays the task is missing"),
        ({"filter": "rejection_sampling", "endpoint": "a"}, "reward: nothing says which answers"),
        (
            {"filter": "rejection_sampling", "endpoint": "a", "task": TASK, "max_chars": 9},
            "max_chars: an episode is more",
        ),
        (
            {
                "filter": "rejection_sampling",
                "endpoint": "a",
                "task": TASK,
                "checks": [{"reward": "math", "min": 1}],
            },
            "checked as the task's rewards score it",
        ),
    ],
)
def test_keys_that_say_nothing_are_refused(step: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(Step).validate_python({"name": "s", **step})


def test_the_command_is_a_curation_of_one_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def options(*more: str) -> argparse.Namespace:
        parser = argparse.ArgumentParser()
        add_call_targets(parser.add_subparsers())
        return parser.parse_args(["call-targets", "markers_test", "--tools", "image_zoom_in", *more])

    (tmp_path / "config.json").write_text('{"model_type": "qwen3_vl", "dtype": "float32"}')
    recipe = call_targets_recipe(options("--checkpoint", str(tmp_path), "--min-solved-share", "0.5"))
    config = build_curation(Document(recipe, "command line"))
    (step,), entry = config.steps, config.endpoints["model"]
    assert isinstance(entry, CheckpointConfig)
    assert (entry.dtype, config.name) == ("float32", "markers_test-call-targets")
    assert step.model_dump(include={"samples", "temperature", "min_solved_share", "column"}) == {
        "samples": 16,
        "temperature": 1.0,
        "min_solved_share": 0.5,
        "column": "target_tool_calls",
    }
    asked = build_curation(Document(call_targets_recipe(options("--model", "m")), "command line")).steps[0]
    assert asked.model_dump(include={"samples", "temperature"}) == {"samples": 1, "temperature": 0.0}
    with pytest.raises(ConfigError, match="--max-turns: is of episodes"):
        call_targets_recipe(options("--model", "m", "--max-turns", "3"))
    with pytest.raises(SystemExit):
        options()
    assert "--checkpoint --model" in capsys.readouterr().err
