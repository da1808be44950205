"""Failures of the world: the episode is played once more, then masked, counted, and at worst the run ends."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.config import TaskConfig
from posttrain.failures import ToolFailure
from posttrain.inference.engine import stable_seed
from posttrain.rendering.rendering import Renderer
from posttrain.rollout.episode import EpisodeJob, Limits, TaskEnvironments
from posttrain.rollout.jobs import GroupJob
from posttrain.rollout.world import WorldFailing, check_world, failure_metrics
from posttrain.types import Sample, Trajectory, text_message
from tests.at_work import play
from tests.unit.rollout.local_pool import LocalPool
from tools_env import Environment, ToolEnvironment, WorldError, tool
from tools_env.games import LoadedGame

LIMITS = Limits(max_new_tokens=100, max_length=1000)
Make = Callable[[int], Sample]
CALL = f"<tool_call>{json.dumps({'name': 'act', 'arguments': {}})}</tool_call>"

GAME = '''
from tools_env import Environment, WorldError


class Say(Environment):
    """Wants to hear a digit above a limit; its server is down for the prompts of some columns."""

    def __init__(self, above=4):
        self.above, self.said = above, -1

    def start(self, sample):
        if sample.columns.get("down"):
            raise WorldError("its server is down")
        return "Say a digit."

    def step(self, said):
        self.said = int(said)

    def rewards(self):
        return {"high": float(self.said > self.above), "said": self.said}
'''


class Flaky(ToolEnvironment):
    """Fails the first times, at its start, in a call or at its end."""

    def __init__(self, folder: Path, left: list[int], where: str) -> None:
        @tool
        def act() -> str:
            """Act."""
            self.fail("call")
            return "done"

        super().__init__([act], 3, folder)
        self.left, self.where = left, where

    def fail(self, where: str) -> None:
        if where == self.where and self.left[0]:
            self.left[0] -= 1
            raise WorldError("the wire is cut", "wire")

    def start(self, sample: Sample) -> Any:
        self.fail("start")
        return super().start(sample)

    def close(self) -> Any:
        super().close()
        self.fail("close")
        return {}


@pytest.mark.parametrize("where", ["start", "call", "close"])
@pytest.mark.parametrize("times", [0, 1, 2])
def test_an_episode_is_played_once_more_and_then_masked(
    engine: Any, renderer: Renderer, make_sample: Make, tmp_path: Path, where: str, times: int
) -> None:
    engine.say = lambda request: "K" if b"done" in renderer_text(renderer, request) else CALL
    left = [times]
    task = {"t": TaskEnvironments([], lambda: Flaky(tmp_path, left, where))}
    jobs = [EpisodeJob(make_sample(0), "t", 0, 0, stable_seed(0))]
    (trajectory,) = play(engine, renderer, task, jobs, LIMITS)
    assert trajectory.failures == [ToolFailure("wire", "the wire is cut")] * times
    assert trajectory.failed == (times == 2)
    assert trajectory.stop_reason == ("error" if times == 2 else "answer")
    assert trajectory.prompt
    assert not engine.busy


def renderer_text(renderer: Renderer, request: Any) -> bytes:
    return renderer.tokenizer.decode(request.token_ids).encode()


def test_the_second_time_is_sampled_as_the_first(
    engine: Any, renderer: Renderer, make_sample: Make, tmp_path: Path
) -> None:
    engine.say = lambda request: "K" if b"done" in renderer_text(renderer, request) else CALL
    found = []
    for times in (0, 1):
        left = [times]

        def create(left: list[int] = left) -> Flaky:
            return Flaky(tmp_path, left, "call")

        (one,) = play(
            *(engine, renderer, {"t": TaskEnvironments([], create)}),
            [EpisodeJob(make_sample(0), "t", 0, 0, stable_seed(0))],
            LIMITS,
        )
        found.append((one.token_ids, one.sampled, one.tool_calls))
    assert found[0] == found[1]


def test_a_user_s_environment_is_played_from_a_task_and_its_failures_are_not_scored(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "say.py").write_text(GAME)
    task = TaskConfig.model_validate(
        {
            "data": "t",
            "environment": {"name": f"{tmp_path}/say.py:Say", "params": {"above": 2}},
            "max_turns": 2,
            "rewards": [{"name": "environment.high"}, {"name": "environment.said", "weight": 0.1}],
        }
    )
    pool = LocalPool(tiny_checkpoint, [task], 500, tmp_path)
    prompts = [
        Sample("up", (text_message("user", "Play."),)),
        Sample("down", (text_message("user", "Play."),), columns={"down": True}),
    ]
    groups = [GroupJob(index, "t", sample, 4, index) for index, sample in enumerate(prompts)]
    pool._worker.serving.engine.say = lambda request: str(request.seed % 10)  # pyright: ignore
    assert pool.prompt_tokens(groups)[0] > pool.prompt_tokens(groups)[1]  # it shows more than the row
    up, down = (pool.rollout([group], LIMITS).trajectories for group in groups)
    assert all(each.prompt[0].text == "Play.Say a digit." for each in up)
    assert [each.outcome["said"] for each in up] == [int(each.response[0].text) for each in up]
    assert all(each.outcome["high"] == (each.outcome["said"] > 2) for each in up)
    assert all(each.reward is not None and each.stop_reason == "answer" for each in up)
    assert all(each.failed and each.reward is None for each in down)
    assert down[0].failures == [ToolFailure("Say", "its server is down")] * 2


def ended(failed: int, fine: int, retried: int = 0) -> list[Trajectory]:
    wire, ship = ToolFailure("wire", "cut"), ToolFailure("ship", "sunk")
    broken = [Trajectory("s", "t", 0, 0, stop_reason="error", failures=[ship, wire]) for _ in range(failed)]
    whole = [Trajectory("s", "t", 0, 0, stop_reason="answer") for _ in range(fine)]
    return broken + whole + [replace_failures([ship]) for _ in range(retried)]


def replace_failures(failures: list[ToolFailure]) -> Trajectory:
    return Trajectory("s", "t", 0, 0, stop_reason="answer", failures=failures)


def test_failures_are_counted_by_tool() -> None:
    assert failure_metrics(ended(1, 6, retried=3)) == {
        "episode/failed": 0.1,
        "tool_failures/ship": 4.0,
        "tool_failures/wire": 1.0,
    }


@pytest.mark.parametrize(
    ("failed", "fine", "ends"), [(0, 4, False), (1, 1, False), (2, 18, False), (2, 17, True), (4, 0, True)]
)
def test_above_a_share_the_run_ends_and_names_the_tool(failed: int, fine: int, ends: bool) -> None:
    if not ends:
        check_world(ended(failed, fine), 0.1, "rl/step-3")
        return
    told = rf"rl/step-3: {failed} of {failed + fine} episodes.*'wire', most often: cut.*--resume"
    with pytest.raises(WorldFailing, match=told):
        check_world(ended(failed, fine), 0.1, "rl/step-3")


class Looping(Environment):
    """Never ends by itself."""

    def step(self, said: str) -> str:
        return "go on"


def test_an_environment_ends_at_the_budget_of_turns(
    engine: Any, renderer: Renderer, make_sample: Make, tmp_path: Path
) -> None:
    engine.say = lambda request: "K"
    game = LoadedGame(Looping, {})
    task = {"t": TaskEnvironments([], lambda: ToolEnvironment([], 3, tmp_path, game))}
    (trajectory,) = play(
        engine, renderer, task, [EpisodeJob(make_sample(0), "t", 0, 0, stable_seed(0))], LIMITS
    )
    assert trajectory.stop_reason == "max_turns"
    roles = [message.role for message in trajectory.response]
    assert roles == ["assistant", "user", "assistant", "user", "assistant"]
    whole = renderer.render([*trajectory.prompt, *trajectory.response])
    assert trajectory.token_ids == whole.token_ids[: len(trajectory.token_ids)]
