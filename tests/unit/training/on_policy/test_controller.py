"""The controller with engines and learners that a test decides: order, faults, stops and limits."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from posttrain.config import RlStage
from posttrain.data.mixing import Mixture
from posttrain.inference.engine import stable_seed
from posttrain.inference.pool import PoolError
from posttrain.rollout.episode import Limits
from posttrain.rollout.jobs import GroupJob, PlayedGroup
from posttrain.rollout.play import PlayGroup
from posttrain.run.directory import RunDir
from posttrain.run.process import STOP
from posttrain.training.on_policy.controller import Controller, Crew
from posttrain.training.on_policy.in_flight import StepInFlight
from posttrain.training.on_policy.learner import PolicyMismatch
from posttrain.training.on_policy.learner_group import LearnerFailed
from posttrain.training.on_policy.pacing import EngineMeter, Pacing, StalenessError, run_paced
from posttrain.training.on_policy.prompts import Drawn, PromptsAhead, StepPrompts
from posttrain.types import RewardResult, Sample, Trajectory, text_message

STEPS = 6
PROMPTS = 4


@dataclass
class Team:
    """Engines, learners and publisher in one; keeps a list of what happened.

    Attributes:
        seconds: How long a group takes, by its sample; None is for ever.
        faults: How many updates disagree with the engines.
        serves: The version that engines serve whatever they are given; None is what they are given.
        wrong_proofs: The version whose proof fails once.
        reward: What an episode of a sample earns; None where a reward failed.
        learner_dies: When a learner dies, by the monotonic clock; 0 is never.
        events: What was done, in order.
        learned: The samples of each update.
    """

    seconds: Callable[[str], float | None] = lambda sample: 0.0
    faults: int = 0
    actors: int = 1
    serves: int | None = None
    wrong_proofs: int = 0
    learner_dies: float = 0.0
    reward: Callable[[str, int], float | None] = lambda sample, episode: float(episode)
    version: int = 0
    events: list[str] = field(default_factory=list)
    learned: list[list[str]] = field(default_factory=list)

    def submit(self, jobs: Sequence[PlayGroup]) -> list[Future[PlayedGroup]]:
        self.events.append(f"play {jobs[0].group.sample.id}")
        return [self._begin(job.group) for job in jobs]

    def _begin(self, group: GroupJob) -> Future[PlayedGroup]:
        future: Future[PlayedGroup] = Future()
        seconds = self.seconds(group.sample.id)
        if seconds is not None:
            timer = threading.Timer(seconds, self._end, (group, future))
            timer.daemon = True
            timer.start()
        return future

    def _end(self, group: GroupJob, future: Future[PlayedGroup]) -> None:
        version = self.version if self.serves is None else self.serves
        members = [
            Trajectory(
                *(group.sample.id, group.task, group.group, episode, [1, 2], [False, True], [0.0, -0.5]),
                versions=[-1, version],
                approximate=[False] * 2,
                reward=RewardResult(self.reward(group.sample.id, episode)),
                stop_reason="answer",
            )
            for episode in range(group.size)
        ]
        if future.set_running_or_notify_cancel():
            future.set_result(PlayedGroup(members, 0.0))

    def prompt_tokens(self, groups: Sequence[GroupJob]) -> Mapping[int, int]:
        return {group.group: 5 for group in groups}

    def update(self, trajectories: Sequence[Trajectory], version: int) -> dict[str, float]:
        assert version == self.version
        if self.faults:
            self.faults -= 1
            self.events.append("mismatch")
            raise PolicyMismatch("they differ")
        self.events.append(f"learn {trajectories[0].sample_id}")
        self.learned.append(sorted({trajectory.sample_id for trajectory in trajectories}))
        return {"loss": 1.0}

    def prove_by(self, trajectories: Sequence[Trajectory]) -> None:
        self.proof = {trajectory.sample_id for trajectory in trajectories}

    def publish(self, version: int) -> dict[str, float]:
        self.events.append(f"publish {version}")
        self.version = version
        wrong = self.wrong_proofs == version
        return {"time/publish": 0.5, "publish/repeated": float(wrong), "publish/proof_gap": 0.1 * version}

    def check(self) -> None:
        if self.learner_dies and time.monotonic() > self.learner_dies:
            raise LearnerFailed("a learner's process died")

    def write_checkpoint(self, directory: Path) -> None:
        (directory / "learned.txt").write_text(str(len(self.learned)))


@dataclass
class Log:
    """Keeps metrics."""

    rows: list[dict[str, float]] = field(default_factory=list)
    on_row: Callable[[int], object] = lambda step: None

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        self.rows.append(dict(metrics))
        self.on_row(step)


def stage_of(staleness: int = 0, rounds: int = 0) -> RlStage:
    return RlStage.model_validate(
        {
            "stage": "rl",
            "algorithm": {"name": "sapo", "group_size": 2},
            "tasks": [{"data": "rows", "rewards": [{"name": "answer_accuracy"}]}],
            "prompts_per_step": PROMPTS,
            "max_steps": STEPS,
            "save_steps": 4,
            "rollout": {"max_staleness": staleness},
            **({"dynamic_sampling": {"max_rounds": rounds}} if rounds else {}),
        }
    )


def prompt(draw: int) -> str:
    return f"{draw // PROMPTS + 1}.{draw % PROMPTS}"


class InOrder(Mixture):
    """Draws rows in their order, so that a sample's name says its step and its place."""

    def index(self, draw: int) -> tuple[str, int]:
        return "rows", draw


def run(
    team: Team, run: RunDir, staleness: int = 0, log: Log | None = None, done: int = 0, rounds: int = 0
) -> Log:
    """Run a stage from a step on."""
    log, stage, versions = log or Log(), stage_of(staleness, rounds), count(1)
    messages = (text_message("user", "?"),)
    # With rounds of refilling, as many rows more as each of them may take.
    dataset: Any = [Sample(prompt(draw), messages) for draw in range((1 + 9 * rounds) * STEPS * PROMPTS)]
    prompts = StepPrompts(InOrder({"rows": dataset}, {"rows": 1.0}, 0), stage, 0, team.prompt_tokens)
    pool: Any = team
    crew = Crew(pool, team, team, lambda: next(versions))
    pacing = Pacing(staleness, done, STEPS)
    controller = Controller(stage, run, crew, prompts, pacing, log)
    try:
        run_paced(pacing, controller, (PolicyMismatch, StalenessError))
        controller.save()
    finally:
        controller.close()
    return log


@pytest.fixture
def folder(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def own_prompts(first: int = 1) -> list[list[str]]:
    """The prompts of each step, from the first on."""
    return [[f"{step}.{place}" for place in range(PROMPTS)] for step in range(first, STEPS + 1)]


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


def test_a_refilled_step_learns_where_there_is_signal_and_counts_the_rest(folder: RunDir) -> None:
    """In step 2 the first place is hopeless for ever, the second solved once; in step 3 a reward fails."""

    def reward(sample: str, episode: int) -> float | None:
        if sample == "3.2":
            return None
        return 0.25 if sample in ("2.0", "8.0", "14.0", "2.1") else float(episode)

    team = Team(reward=reward)
    log = run(team, folder, rounds=2)
    # A replacement is of the draw one stage of six steps later, then two stages, …
    expected = own_prompts()
    expected[1] = ["14.0", "2.2", "2.3", "8.1"]
    expected[2] = ["3.0", "3.1", "3.3", "9.2"]
    assert team.learned == expected
    names = ("refill/rounds", "refill/groups", "refill/episodes", "reward/errors", "advantage/zero_groups")
    assert [tuple(row[name] for name in names) for row in log.rows[:4]] == [
        (0, 0, 0, 0, 0),
        (2, 3, 6, 0, 1),
        (1, 1, 2, 2, 0),
        (0, 0, 0, 0, 0),
    ]
    # What is said of the policy is said of the prompts as they came, not of those that were chosen.
    assert [row["reward/mean"] for row in log.rows[:3]] == [0.5, 0.375, 0.5]


def test_a_refilled_run_that_is_resumed_learns_the_same(tmp_path: Path) -> None:
    """From any step on, also ahead of the learner, and where an engine's step has to be repeated."""

    def reward(sample: str, episode: int) -> float:
        return float(episode) if stable_seed(sample) % 3 else 0.0

    whole = Team(reward=reward)
    run(whole, RunDir(tmp_path / "whole"), rounds=3)
    assert any(sample.split(".")[0] not in "123456" for step in whole.learned for sample in step)
    for staleness, done, faults in ((0, 3, 0), (2, 0, 0), (2, 4, 0), (0, 2, 1), (2, 1, 1)):
        team = Team(reward=reward, faults=faults)
        run(team, RunDir(tmp_path / f"{staleness}{done}"), staleness, done=done, rounds=3)
        assert team.learned == whole.learned[done:]


def test_the_rounds_of_later_steps_do_not_wait_for_their_turn(folder: RunDir) -> None:
    """While the first step's slow prompt plays, the second step's refill is begun."""
    team = Team(
        lambda sample: 1.0 if sample == "1.0" else 0.0,
        reward=lambda sample, episode: 0.0 if sample == "2.0" else float(episode),
    )
    run(team, folder, staleness=1, rounds=1)
    assert team.events.index("play 8.0") < team.events.index("learn 1.0")


def test_a_run_that_is_asked_to_stop_stops_between_rounds(folder: RunDir) -> None:
    def reward(sample: str, episode: int) -> float:
        (folder.path / STOP).touch()
        return 0.0

    team = Team(reward=reward)
    run(team, folder, rounds=5)
    assert not team.learned


def test_a_task_that_has_no_more_rows_keeps_what_it_has() -> None:
    """Four places, five rows: one place can be refilled, once."""
    stage = stage_of(rounds=9)
    dataset: Any = [Sample(str(row), (text_message("user", "?"),)) for row in range(5)]
    prompts = StepPrompts(Mixture({"rows": dataset}, {"rows": 1.0}, 0), stage, 0, Team().prompt_tokens)
    drawn = prompts.of_step(1)
    before = {group.sample.id for group in drawn.groups}
    (new,) = prompts.refill(drawn, [1, 2], 1)
    assert {new.sample.id} == {"0", "1", "2", "3", "4"} - before
    assert drawn.groups[new.group] is new
    assert prompts.refill(drawn, [0, 1, 2, 3], 2) == []


@pytest.mark.parametrize("hopeless", [0.1, 0.6])
def test_refilling_keeps_the_shares_of_tasks(hopeless: float) -> None:
    """Whatever has no signal, every step has each task in its share and no row twice; seeds differ."""
    messages, shares = (text_message("user", "?"),), {"a": 0.25, "b": 0.75}
    tasks = [{"data": name, "ratio": ratio, "rewards": ["answer_accuracy"]} for name, ratio in shares.items()]
    stage = RlStage.model_validate(stage_of(rounds=4).model_dump(exclude_unset=True) | {"tasks": tasks})
    data: Any = {name: [Sample(f"{name}{row}", messages) for row in range(40)] for name in shares}
    prompts = StepPrompts(Mixture(data, shares, 3), stage, 0, Team().prompt_tokens)
    for step in range(1, STEPS + 1):
        drawn, seeds, shown = prompts.of_step(step), set(), []
        order = [group.task for group in drawn.groups]
        assert order.count("a") == 1
        new = drawn.groups
        for turn in range(1, 5):
            seeds |= {group.seed for group in new}
            shown += [group.sample.id for group in new]
            names = {group.group: group.sample.id for group in drawn.groups}
            places = [place for place, name in names.items() if stable_seed(name) % 100 < 100 * hopeless]
            new = prompts.refill(drawn, places, turn)
            assert [group.task for group in drawn.groups] == order
        assert len(shown) == len(set(shown)) == len(seeds)
