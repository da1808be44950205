"""Calls in episodes, as each family was trained: what is learned as data is what rollouts sample."""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from posttrain.config import ModelConfig
from posttrain.inference.engine import Request
from posttrain.quickstart.tiny import build_tiny
from posttrain.rendering.rendering import Renderer
from posttrain.rollout.episode import EpisodeJob, Limits, TaskEnvironments
from posttrain.types import Sample, ToolFormat, Trajectory
from tests.at_work import play

LIMITS = Limits(max_new_tokens=400, max_length=4000)
ARGUMENTS = '{"bbox_2d": [100, 100, 400, 400], "label": "marker", "img_idx": %d}'
CALL = '<tool_call>\n{"name": "image_zoom_in_tool", "arguments": %s}\n</tool_call>'
#: Two calls, the second of which looks at the first one's image, and one that is wrong.
LOOKS = "\n".join(["I look.", *(CALL % each for each in (ARGUMENTS % 0, ARGUMENTS % 1, "{}"))])
INLINE = LOOKS.replace('<tool_call>\n{"name": "', "*FUNCTION*: ").replace('", "arguments": ', "\n*ARGS*: ")
INLINE = INLINE.replace("}\n</tool_call>", "")


@pytest.fixture(scope="module")
def renderers(tmp_path_factory: pytest.TempPathFactory, renderer: Renderer) -> dict[str, Renderer]:
    folder = tmp_path_factory.mktemp("qwen2_vl")
    build_tiny("qwen2_vl", folder)
    formats: tuple[ToolFormat, ...] = ("qwen_agent", "hermes")
    older = {name: Renderer.from_pretrained(folder, "qwen2_vl", tool_format=name) for name in formats}
    own = Renderer.from_pretrained(folder, "qwen2_vl")
    return {"qwen3_vl": renderer, "qwen2_vl": own, **older}


TURNS = {
    "qwen3_vl": (LOOKS, "It is K."),
    "hermes": (LOOKS, "It is K."),
    "qwen2_vl": (INLINE + "\n*RESULT*", ": It is K."),
    "qwen_agent": (INLINE.replace("*", "✿") + "\n✿RESULT✿", ": It is K."),
}


def played(
    engine: Any,
    renderer: Renderer,
    task: dict[str, TaskEnvironments],
    sample: Sample,
    say: Callable[[Request], str],
) -> Trajectory:
    engine.say = say
    engine._tokenizer = renderer.tokenizer
    engine._end = renderer.end_token_id
    (trajectory,) = play(engine, renderer, task, [EpisodeJob(sample, "markers", 0, 0, 1)], LIMITS)
    return trajectory


@pytest.mark.parametrize("name", TURNS)
def test_an_episode_with_parallel_calls_is_the_rendering_of_its_dialogue(
    name: str,
    engine: Any,
    renderers: dict[str, Renderer],
    zoom_task: dict[str, TaskEnvironments],
    make_sample: Callable[[int], Sample],
) -> None:
    renderer, (calls, answer) = renderers[name], TURNS[name]
    said = iter([calls, answer])
    trajectory = played(engine, renderer, zoom_task, make_sample(0), lambda _: next(said))
    assert [message.role for message in trajectory.response] == ["assistant", *["tool"] * 3, "assistant"]
    assert trajectory.response[0].text == LOOKS
    assert trajectory.response[-1].text == "It is K."
    assert [call.ok for call in trajectory.tool_calls] == [True, True, False]
    assert [message.text for message in trajectory.response[1:3]] == ["Image 1", "Image 2"]
    assert "'bbox_2d' is a required property" in trajectory.response[3].text
    whole = renderer.render([*trajectory.prompt, *trajectory.response], zoom_task["markers"].tools)
    assert trajectory.token_ids == whole.token_ids[: len(trajectory.token_ids)]
    assert trajectory.sampled == whole.supervised[: len(trajectory.token_ids)]
    assert not any(whole.supervised[len(trajectory.token_ids) :])
    assert [image.offset for image in trajectory.images] == [image.offset for image in whole.images]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("*FUNCTION*: image_zoom_in_tool\n*ARGS*: {oops}\n*RESULT*", "not valid JSON"),
        ("Let me see the *RESULT*", "is empty: it names no tool"),
        ("*FUNCTION*: paint\n*ARGS*: {}\n*RESULT*", "there is no tool 'paint'"),
        ("*FUNCTION*: image_zoom_in_tool\n*ARGS*: {}", "is a required property"),
    ],
)
def test_a_mistake_is_told_and_the_dialogue_goes_on(
    said: str,
    told: str,
    engine: Any,
    renderers: dict[str, Renderer],
    zoom_task: dict[str, TaskEnvironments],
    make_sample: Callable[[int], Sample],
) -> None:
    turns = iter([said, ": K"])
    trajectory = played(engine, renderers["qwen2_vl"], zoom_task, make_sample(0), lambda _: next(turns))
    assert told in trajectory.response[1].text
    assert (trajectory.stop_reason, trajectory.response[-1].text) == ("answer", "K")


def test_a_call_within_the_thinking_is_not_run(
    engine: Any,
    renderers: dict[str, Renderer],
    zoom_task: dict[str, TaskEnvironments],
    make_sample: Callable[[int], Sample],
) -> None:
    thought = f"<think>{LOOKS}</think>K"
    trajectory = played(engine, renderers["qwen3_vl"], zoom_task, make_sample(0), lambda _: thought)
    assert (trajectory.tool_calls, trajectory.stop_reason) == ([], "answer")


def test_a_dialogue_without_tools_stops_nowhere_else(
    engine: Any, renderers: dict[str, Renderer], zoom_task: dict[str, TaskEnvironments], make_sample: Any
) -> None:
    asked: list[tuple[str, ...]] = []

    def say(request: Request) -> str:
        asked.append(tuple(request.stops))
        return "K"

    bare = {"markers": TaskEnvironments([], zoom_task["markers"].create)}
    for task in (bare, zoom_task):
        played(engine, renderers["qwen2_vl"], task, make_sample(0), say)
    played(engine, renderers["qwen3_vl"], zoom_task, make_sample(0), say)
    assert asked == [(), ("*RESULT*",), ()]


def test_renderers_of_unlike_formats_are_not_taken_for_each_other(renderers: dict[str, Renderer]) -> None:
    identities = {renderers[name].identity for name in ("hermes", "qwen2_vl", "qwen_agent")}
    assert len(identities) == 3


def test_qwen3_vl_has_no_turns_with_results_in_them() -> None:
    with pytest.raises(ValidationError, match=r"(?s)tool_format.*shows no images within a turn.*remove it"):
        ModelConfig(name_or_path="Qwen/Qwen3-VL-8B-Instruct", tool_format="qwen2_vl")
    assert ModelConfig(name_or_path="Qwen/Qwen2.5-VL-7B-Instruct", tool_format="qwen2_vl").tool_format
