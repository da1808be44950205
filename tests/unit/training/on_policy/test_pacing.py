"""Pacing, in a world of its own clock: engines, learners and kills of any speed, at any time."""

import random
from collections import Counter, deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.training.on_policy.pacing import (
    EngineMeter,
    Pacing,
    StalenessError,
    age_metrics,
    run_paced,
)

#: Groups of a step.
GROUPS = 3


class FaultError(RuntimeError):
    """Engine and learner disagree."""


@dataclass
class Group:
    """A group of episodes: the versions of its tokens so far, one a tick."""

    step: int
    prompt: int
    tokens: int
    versions: list[int] = field(default_factory=list)


@dataclass
class Worker:
    """An engine with room for some groups; it is away while it is replaced."""

    room: int
    version: int = -1
    groups: list[Group] = field(default_factory=list)
    away: int = 0


@dataclass
class World:
    """Does the work of a stage, tick by tick, at random speeds.

    Attributes:
        chance: Decides everything.
        learned: The prompts of each step that was learned, in order.
        policies: The policy of each version.
        started: The steps that were started, in order, and the policy that was served then.
        oldest: The largest age of any token learned from.
    """

    chance: random.Random
    staleness: int
    kills: int = 0
    faults: float = 0.0
    stops: float = 0.0
    learned: list[tuple[int, list[int]]] = field(default_factory=list)
    policies: list[int] = field(default_factory=list)
    started: list[tuple[int, int]] = field(default_factory=list)
    oldest: int = 0
    discarded: int = 0

    def __post_init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self.workers = [Worker(self.chance.randint(1, 4)) for _ in range(self.chance.randint(1, 3))]
        self.queue: deque[Group] = deque()
        self.ended: dict[tuple[int, int], Group] = {}
        self.slow = self.chance.choice([1, 5, 40])

    def resume(self) -> None:
        """Begin again as a new process does, which knows of no version."""
        self._begin()
        self.policies = []

    def play(self, step: int) -> None:
        self.started.append((step, self.policies[-1]))
        for prompt in range(GROUPS):
            slow = self.slow if prompt % 2 else 1
            self.queue.append(Group(step, prompt, self.chance.randint(1, 5) * slow))

    def collect(self, step: int) -> list[Group] | None:
        wanted = [(step, prompt) for prompt in range(GROUPS)]
        while not all(key in self.ended for key in wanted):
            if self.chance.random() < self.stops:
                return None
            self.tick()
        return [self.ended.pop(key) for key in wanted]

    def learn(self, step: int, played: list[Group]) -> None:
        if self.chance.random() < self.faults:
            raise FaultError("they differ")
        for group in played:
            assert group.step == step
            for version in group.versions:
                age = step - 1 - self.policies[version]
                assert 0 <= age <= self.staleness, "its age"
                self.oldest = max(self.oldest, age)
        self.wait()
        self.learned.append((step, [group.prompt for group in played]))

    def publish(self) -> int:
        policy = self.learned[-1][0] if self.learned else 0
        self.policies.append(policy)
        for worker in self.workers:
            self.wait(2)
            worker.version = len(self.policies) - 1
        if self.chance.random() < self.faults:
            raise FaultError("an engine lies")
        return len(self.policies) - 1

    def discard(self) -> None:
        self.discarded += 1
        self.queue.clear()
        self.ended.clear()
        for worker in self.workers:
            worker.groups.clear()

    def finish(self, step: int, repeated: bool) -> bool:
        return True

    def wait(self, most: int = 30) -> None:
        """Do something else, while the engines work on."""
        for _ in range(self.chance.randint(0, most)):
            self.tick()

    def tick(self) -> None:
        """Have every engine sample a token of every group."""
        for worker in self.workers:
            worker.away = max(0, worker.away - 1)
            if worker.away:
                continue
            if self.kills and self.chance.random() < 0.05:
                self.kills -= 1
                lost = [Group(g.step, g.prompt, g.tokens) for g in worker.groups]
                self.queue.extendleft(reversed(lost))
                worker.groups, worker.away = [], 4
                continue
            while self.queue and len(worker.groups) < worker.room:
                worker.groups.append(self.queue.popleft())
            for group in worker.groups:
                group.versions.append(worker.version)
                if len(group.versions) == group.tokens:
                    self.ended[group.step, group.prompt] = group
            worker.groups = [g for g in worker.groups if len(g.versions) < g.tokens]


def each_once(steps: int) -> list[tuple[int, list[int]]]:
    return [(step, list(range(GROUPS))) for step in range(1, steps + 1)]


@given(
    seed=st.integers(0, 2**32),
    staleness=st.integers(0, 4),
    steps=st.integers(5, 12),
    kills=st.integers(0, 20),
)
def test_each_step_learns_its_own_prompts_once_within_the_bound(
    seed: int, staleness: int, steps: int, kills: int
) -> None:
    world = World(random.Random(seed), staleness, kills)
    run_paced(Pacing(staleness, 0, steps), world, (FaultError,))
    assert world.learned == each_once(steps)
    assert not world.discarded
    # Each step is started once, in order, by the first policy that may play it.
    assert world.started == [(step, max(0, step - 1 - staleness)) for step in range(1, steps + 1)]
    assert not staleness or world.policies == list(range(steps))


@given(seed=st.integers(0, 2**32), staleness=st.integers(0, 4))
def test_a_stage_that_is_stopped_and_resumed_learns_what_an_undisturbed_one_does(
    seed: int, staleness: int
) -> None:
    world, steps = World(random.Random(seed), staleness, kills=5, stops=0.01), 12
    while (learned := len(world.learned)) < steps:
        world.resume()
        pacing = Pacing(staleness, learned, steps)
        assert pacing.admit() == list(range(learned + 1, min(steps, learned + 1 + staleness) + 1))
        pacing.replay()
        run_paced(pacing, world, (FaultError,))
    assert world.learned == each_once(steps)


@given(seed=st.integers(0, 2**32), staleness=st.integers(0, 4))
def test_a_fault_repeats_what_is_under_way_and_changes_nothing_else(seed: int, staleness: int) -> None:
    world, steps = World(random.Random(seed), staleness, faults=0.1), 8
    try:
        run_paced(Pacing(staleness, 0, steps), world, (FaultError,))
    except FaultError:  # twice for one policy
        steps = len(world.learned)
    assert world.learned == each_once(steps)
    played = Counter(step for step, _ in world.started)
    assert max(played.values()) <= 2 + staleness * world.discarded


def test_the_bound_is_reached() -> None:
    """With episodes that are slow and fast in turns, tokens get as old as they may, so the tests can fail."""
    for staleness in (1, 3):
        ages = [0]
        for seed in range(20):
            world = World(random.Random(seed), staleness)
            run_paced(Pacing(staleness, 0, 10), world, (FaultError,))
            ages.append(world.oldest)
        assert max(ages) == staleness


def test_one_step_too_early_is_noticed() -> None:
    class Slow(World):
        def wait(self, most: int = 30) -> None:
            """Take long, so that the engines get far ahead."""
            for _ in range(most):
                self.tick()

    world = Slow(random.Random(0), staleness=1)
    with pytest.raises(AssertionError, match="its age"):
        run_paced(Pacing(2, 0, 10), world, (FaultError,))


def test_ages_count_policies_and_refuse_what_nobody_may_have_sampled() -> None:
    pacing = Pacing(1, 50, 60)
    pacing.publish(version=3)
    assert pacing.admit() == [51, 52]
    assert pacing.ages([3, 3]) == {0: 2}
    pacing.learn()
    pacing.publish(version=4)
    assert pacing.admit() == [53]
    pacing.publish(version=5)  # the same policy again
    assert pacing.ages([3, 4, 5, 5]) == {0: 3, 1: 1}
    with pytest.raises(
        StalenessError, match=r"step 52 has 2 tokens of version 7, which is none that was pub"
    ):
        pacing.ages([4, 7, 7])
    pacing.learn()
    with pytest.raises(
        StalenessError, match=r"step 53 has 1 tokens of version 3, .* policies 51 to 52 alone"
    ):
        pacing.ages([3, 4])


def test_metrics_of_ages_are_shares_of_all_that_may_be() -> None:
    assert age_metrics({0: 3, 1: 1}, 2) == {
        "staleness/mean": 0.25,
        "staleness/max": 1.0,
        "staleness/share_0": 0.75,
        "staleness/share_1": 0.25,
        "staleness/share_2": 0.0,
    }
    assert age_metrics({}, 0) == {"staleness/mean": 0, "staleness/max": 0, "staleness/share_0": 0}


def test_engines_wait_while_they_are_given_too_little() -> None:
    now = 0.0
    meter = EngineMeter(2, lambda: now)
    now = 10.0
    meter.started(3)  # both had waited
    now = 14.0
    meter.ended()
    meter.ended()  # one engine is left without a group
    now = 20.0
    assert meter.take() == 10.0 + 3.0
    now = 21.0
    meter.ended()
    now = 23.0
    assert meter.take() == 0.5 + 2.0
