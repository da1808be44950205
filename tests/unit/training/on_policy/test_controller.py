"""The controller with engines and learners that a test decides: order, faults, stops and limits."""

import gc
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from posttrain.config import RewardRef, RlTask, RolloutConfig
from posttrain.inference.pool import PoolError
from posttrain.inference.reading import Reading
from posttrain.rollout.episode import Limits
from posttrain.rollout.jobs import GroupJob, PlayedGroup
from posttrain.rollout.play import PlayGroup
from posttrain.rollout.world import WorldFailing
from posttrain.run.directory import RunDir
from posttrain.run.process import STOP
from posttrain.training.on_policy.in_flight import StepInFlight
from posttrain.training.on_policy.learner import PolicyMismatch
from posttrain.training.on_policy.learner_group import LearnerFailed
from posttrain.training.on_policy.pacing import EngineMeter, StalenessError
from posttrain.training.on_policy.prompts import Drawn, PromptsAhead
from posttrain.types import Sample, Trajectory
from tests.unit.training.on_policy.team import (
    PROMPTS,
    STEPS,
    Log,
    Team,
    folder,
    own_prompts,
    prompt,
    run,
)

__all__ = ["folder"]


def test_in_turns_nothing_is_played_before_the_weights_that_play_it(folder: RunDir) -> None:
    team = Team()
    log = run(team, folder)
    expected = [[f"publish {step}", f"play {step}.0", f"learn {step}.0"] for step in range(1, STEPS + 1)]
    assert team.events == [event for step in expected for event in step]
    assert team.learned == own_prompts()
    assert [path.name for path in sorted(folder.stage_dir("rl").iterdir())] == [
        "checkpoint-4",
        "checkpoint-6",
    ]
    for row in log.rows:
        assert not [name for name in row if name.startswith("staleness/")]  # it is 0 by construction
        assert row["publish/repeated"] == 0


def test_slow_prompts_are_learned_in_their_own_steps_and_overlap_others(folder: RunDir) -> None:
    """Half of the prompts are slow: they delay their own steps, and none is lost or learned twice."""
    team = Team(lambda sample: 0.2 if sample.endswith(("1", "3")) else 0.0)
    begun = time.monotonic()
    log = run(team, folder, staleness=2)
    assert time.monotonic() - begun < STEPS * 0.2  # in turns it takes that at the least
    assert team.learned == own_prompts()
    assert team.events[:4] == ["publish 1", "play 1.0", "play 2.0", "play 3.0"]
    assert team.events.index("play 4.0") > team.events.index("publish 2")
    assert max(row["staleness/max"] for row in log.rows) <= 2
    assert sum(log.rows[-1][f"staleness/share_{age}"] for age in range(3)) == pytest.approx(1)


def test_meters_tell_who_waited(folder: RunDir) -> None:
    team = Team(lambda sample: 0.1)
    log = run(team, folder)
    for row in log.rows:
        assert 0.1 <= row["time/learner_wait"] <= row["time/step"]
        assert row["time/rollout"] >= 0.1
        assert row["time/engine_wait"] <= row["time/step"] - 0.1 + 0.01


def test_a_disagreement_is_healed_by_a_new_publish_and_told(folder: RunDir) -> None:
    team = Team(faults=1)
    log = run(team, folder, staleness=1)
    assert team.events[:7] == [
        *("publish 1", "play 1.0", "play 2.0", "mismatch", "publish 2", "play 1.0", "play 2.0")
    ]
    assert team.learned == own_prompts()
    assert [row["publish/repeated"] for row in log.rows] == [1, 0, 0, 0, 0, 0]


def test_what_is_played_while_a_proof_fails_is_played_again(folder: RunDir) -> None:
    """An engine had other weights for a while: what was under way then may be theirs."""
    team = Team(wrong_proofs=3)
    log = run(team, folder, staleness=1)
    third = team.events.index("publish 3")
    assert team.events[third - 2 : third + 3] == [
        *("play 3.0", "learn 2.0", "publish 3", "play 3.0", "play 4.0")
    ]
    assert team.learned == own_prompts()
    assert [row["publish/repeated"] for row in log.rows] == [0, 1, 0, 0, 0, 0]
    assert log.rows[1]["time/publish"] == 0.5
    assert log.rows[1]["publish/proof_gap"] == pytest.approx(0.3)


def test_what_the_world_failed_is_not_learned_and_too_much_of_it_ends_the_run(folder: RunDir) -> None:
    log = run(Team(fails=lambda sample: sample == "2.1"), folder)
    assert [row["episode/failed"] for row in log.rows] == [0, 1 / 8, 0, 0, 0, 0]
    assert log.rows[1]["tool_failures/search"] == 2
    assert log.rows[1]["reward/errors"] == 0
    team = Team(fails=lambda sample: sample in ("3.0", "3.2"))
    with pytest.raises(WorldFailing, match=r"rl/step-3: 2 of 8 episodes.*'search', most often: no answer"):
        run(team, folder)
    assert team.learned[-1] == [prompt(draw) for draw in range(PROMPTS, 2 * PROMPTS)]


def test_a_second_disagreement_ends_the_run(folder: RunDir) -> None:
    team = Team(faults=2)
    with pytest.raises(PolicyMismatch, match="they differ"):
        run(team, folder)
    assert not team.learned


def test_an_engine_that_serves_an_old_version_is_noticed(folder: RunDir) -> None:
    """After the third step it samples from the first weights again, also when these are published anew."""
    team, serving = Team(), Log()
    serving.on_row = lambda step: setattr(team, "serves", 1) if step == 3 else None
    with pytest.raises(StalenessError, match=r"step 4 has 8 tokens of version 1, .* the policy after step 0"):
        run(team, folder, log=serving)
    assert team.learned == own_prompts()[:3]


def test_a_stop_while_episodes_run_saves_what_is_learned_and_resumes_with_them(folder: RunDir) -> None:
    """A prompt that takes for ever when SIGTERM comes is learned after the resume, like all others."""
    team = Team(lambda sample: None if sample == "4.2" else 0.0)
    stop = threading.Timer(0.5, (folder.path / STOP).touch)
    stop.start()
    begun = time.monotonic()
    run(team, folder, staleness=2)
    assert time.monotonic() - begun < 5
    assert team.learned == own_prompts()[:3]
    newest = folder.newest_checkpoint("rl")
    assert newest is not None
    assert newest.name == "checkpoint-3"
    (folder.path / STOP).unlink()
    resumed = Team()
    log = run(resumed, folder, staleness=2, done=3)
    assert resumed.learned == own_prompts(first=4)
    assert resumed.events[:4] == ["publish 1", "play 4.0", "play 5.0", "play 6.0"]
    assert max(row["staleness/max"] for row in log.rows) <= 2


def test_what_a_group_raises_ends_the_stage_and_gives_the_others_up(folder: RunDir) -> None:
    futures: list[Future[PlayedGroup]] = []

    class Failing(Team):
        def submit(self, jobs: Sequence[PlayGroup]) -> list[Future[PlayedGroup]]:
            futures.extend(super().submit(jobs))
            futures[1].set_exception(PoolError("gave up after losing 4 workers"))
            return futures[-len(jobs) :]

    with pytest.raises(PoolError, match="gave up after losing 4"):
        run(Failing(lambda sample: None), folder)
    assert [future.cancelled() for future in futures] == [True, False, True, True]


def test_a_learner_that_dies_while_engines_work_is_noticed_before_they_end(folder: RunDir) -> None:
    begun = time.monotonic()
    team = Team(lambda sample: None if sample == "3.1" else 0.0, learner_dies=begun + 0.5)
    with pytest.raises(LearnerFailed, match="died"):
        run(team, folder, staleness=2)
    assert time.monotonic() - begun < 5
    assert team.learned == own_prompts()[:2]


@pytest.mark.parametrize("staleness", [0, 2])
def test_episodes_go_when_their_step_is_learned(folder: RunDir, staleness: int) -> None:
    """Without waiting for the collector of garbage, to which their tokens are a few objects among many."""
    seen: list[weakref.ref[Trajectory]] = []
    alive: list[int] = []

    class Watched(Team):
        def update(
            self, trajectories: Sequence[Trajectory], version: int, readings: Sequence[Reading | None] = ()
        ) -> dict[str, float]:
            seen.extend(weakref.ref(each) for each in trajectories)
            return super().update(trajectories, version, readings)

    log = Log(on_row=lambda step: alive.append(sum(each() is not None for each in seen)))
    gc.disable()
    try:
        run(Watched(lambda sample: 0.05), folder, staleness, log)
    finally:
        gc.enable()
    assert len(seen) == STEPS * PROMPTS * 2
    assert max(alive) == PROMPTS * 2  # those of the step that is learned
    assert not any(each() is not None for each in seen)


def test_groups_that_never_end_have_a_limit() -> None:
    pool: Any = Team(lambda sample: None if sample == "b" else 0.0)
    groups = [
        GroupJob(index, "task", Sample(name, ()), 2, index) for index, name in enumerate(("a", "b", "c"))
    ]
    flight = StepInFlight(pool, EngineMeter(1), groups, {"task": Limits(5, 10)}, stall=0.6)
    begun = time.monotonic()
    with pytest.raises(
        PoolError, match=r"none of 1 groups .* has ended in 1 s, .* sample 'b' \(task 'task'\)"
    ):
        flight.wait(lambda: False)
    assert time.monotonic() - begun < 5


def test_every_group_is_played_within_the_limits_of_its_task() -> None:
    class Pool(Team):
        def submit(self, jobs: Sequence[PlayGroup]) -> list[Future[PlayedGroup]]:
            played.update({job.group.task: job.limits for job in jobs})
            return super().submit(jobs)

    played: dict[str, Limits] = {}
    rewards = [RewardRef(name="answer_accuracy")]
    rollout = RolloutConfig(max_new_tokens=64, max_length=256)
    tasks = [
        RlTask(data="long", rewards=rewards),
        RlTask(data="short", rewards=rewards, max_new_tokens=4, max_length=32),
    ]
    limits = {task.name: Limits.of_task(task, rollout) for task in tasks}
    groups = [GroupJob(index, task.name, Sample("a", ()), 2, index) for index, task in enumerate(tasks)]
    pool: Any = Pool()
    assert StepInFlight(pool, EngineMeter(1), groups, limits).wait(lambda: False)
    assert played == {"long": Limits(64, 256), "short": Limits(4, 32)}


def test_prompts_are_drawn_one_step_ahead_beside_what_else_goes_on() -> None:
    drawn: list[int] = []
    ahead = PromptsAhead(lambda step: (drawn.append(step), Drawn(step, [], set(), []))[1], last=3)
    try:
        assert ahead.take(1).step == 1
        deadline = time.monotonic() + 5
        while drawn != [1, 2]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert ahead.take(2).step == 2
        assert ahead.take(2).step == 2  # once more, where a step is repeated
        assert ahead.take(3).step == 3
    finally:
        ahead.close()
    assert sorted(drawn) == [1, 2, 2, 3]


def test_a_stage_ends_while_prompts_wait_for_an_engine_that_does_not_come_back() -> None:
    engine = threading.Event()
    ahead = PromptsAhead(lambda step: (step == 1 or engine.wait(60), Drawn(step, [], set(), []))[1], last=3)
    ahead.take(1)
    begun = time.monotonic()
    ahead.close()
    engine.set()
    assert time.monotonic() - begun < 5
