"""Which steps of an rl stage may be played when: pacing in place of discarding.

Step k learns from its own prompts, and the weights that learn from it are those that step k − 1 left: policy
k − 1. Its episodes may start as soon as the engines serve policy k − 1 − max_staleness. So a token's age, in
policies, is at most max_staleness whatever the speed of episodes, engines and learners, and no episode is
discarded for being slow: it delays its own step alone, while the engines go on with the next ones.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, Protocol, TypeVar

from posttrain.run.metric_names import STALENESS_MAX, STALENESS_MEAN, STALENESS_SHARE

logger = logging.getLogger(__name__)

T = TypeVar("T")


class StalenessError(RuntimeError):
    """A token was sampled by a policy that may not have sampled it; the message names both."""


class Pacing:
    """Counts what is played, learned and published, and says what may start.

    A policy is named by the number of steps that it has learned. Engines know versions, which are never used
    twice in a run, not even for the same policy.

    Args:
        max_staleness: Most policies by which a token may be older than the one that learns from it.
        learned: Steps that the stage has learned already.
        last: The stage's last step.

    Attributes:
        learned: Steps that have been learned.
        served: The policy that the engines serve.
        admitted: The last step that has been started.

    Example:
        pacing = Pacing(max_staleness=2, learned=50, last=500)
        pacing.publish(version=1)  # engines serve policy 50
        pacing.admit()  # [51, 52, 53]
    """

    def __init__(self, max_staleness: int, learned: int, last: int) -> None:
        self.learned = self.served = self.admitted = learned
        self._max_staleness = max_staleness
        self._last = last
        self._policies: dict[int, int] = {}  # by version

    @property
    def next_step(self) -> int | None:
        """The step that is learned next; None after the last."""
        return self.learned + 1 if self.learned < self._last else None

    def admit(self) -> list[int]:
        """Return the steps that may start now, in their order; they count as started."""
        permitted = min(self._last, self.served + 1 + self._max_staleness)
        steps = list(range(self.admitted + 1, permitted + 1))
        self.admitted = max(self.admitted, permitted)
        return steps

    def learn(self) -> int:
        """Count the next step as learned; return which it is."""
        assert self.learned < self.admitted, "a step that was never played cannot be learned"
        self.learned += 1
        return self.learned

    def publish(self, version: int) -> None:
        """Count the present policy as served, under a version."""
        assert version not in self._policies, "a version is used once"
        self.served = self.learned
        self._policies[version] = self.learned

    def replay(self) -> None:
        """Count the steps that are played and not learned as not started: they are played again."""
        self.admitted = self.learned

    def ages(self, versions: Iterable[int]) -> Counter[int]:
        """Count the tokens of the next step by age: policies learned since the one that sampled them.

        Args:
            versions: Of each token that was sampled.

        Raises:
            StalenessError: If a token is older than allowed, or from no policy that was published.
        """
        found: Counter[int] = Counter()
        for version, count in Counter(versions).items():
            policy = self._policies.get(version)
            if policy is None or not 0 <= self.learned - policy <= self._max_staleness:
                raise StalenessError(
                    f"step {self.learned + 1} has {count} tokens of version {version}, which is "
                    + ("none that was published" if policy is None else f"the policy after step {policy}")
                    + f"; with max_staleness = {self._max_staleness} it learns from policies "
                    f"{max(0, self.learned - self._max_staleness)} to {self.learned} alone. An engine serves "
                    "other weights than it was given: go on with --resume"
                )
            found[self.learned - policy] += count
        return found


class StepWork(Protocol[T]):
    """What is done for the steps of a stage, by whoever does it."""

    def play(self, step: int) -> None:
        """Start a step's episodes; return before they have ended."""
        ...

    def collect(self, step: int) -> T | None:
        """Wait for a step's episodes; return them, or None where the stage is asked to stop."""
        ...

    def learn(self, step: int, played: T) -> None:
        """Learn from a step's episodes."""
        ...

    def publish(self) -> int:
        """Bring the present policy to every engine; return the version that they serve it as."""
        ...

    def discard(self) -> None:
        """Forget every episode that was started and not learned from: all of them are played again."""
        ...

    def finish(self, step: int, repeated: bool) -> bool:
        """Record a step that was learned and published; return whether to go on."""
        ...


def run_paced(pacing: Pacing, work: StepWork[T], faults: tuple[type[Exception], ...]) -> None:
    """Play, learn and publish one step after another, as far ahead as the pacing permits.

    A fault means that an engine does not sample as the learner does; nothing has been learned from it. The
    weights are published again, and all that is under way is played again from its seeds. That repairs a
    publish that went wrong in an engine, and rare rounding errors of a CPU engine on an overloaded machine
    (seen once in about 300 steps).

    Args:
        pacing: Where the stage stands.
        work: Does what is to be done.
        faults: Exceptions of `learn` and `publish` that one repetition may repair.

    Raises:
        Exception: A fault that comes twice for one policy, and whatever else `work` raises.
    """
    loop = _Loop(pacing, work, faults)
    loop.publish()
    while pacing.next_step is not None and loop.step():
        pass


class _Loop(Generic[T]):
    """The loop of `run_paced`, and whether it has repeated anything for the present policy."""

    def __init__(self, pacing: Pacing, work: StepWork[T], faults: tuple[type[Exception], ...]) -> None:
        self._pacing, self._work, self._faults = pacing, work, faults
        self._repeated = False

    def publish(self) -> None:
        """Publish the present policy, again if the first one goes wrong."""
        try:
            self._pacing.publish(self._work.publish())
        except self._faults as fault:
            self._repair(fault)

    def step(self) -> bool:
        """Make the next step; return whether to go on."""
        pacing, work = self._pacing, self._work
        while True:
            step = pacing.learned + 1
            for started in pacing.admit():
                work.play(started)
            played = work.collect(step)
            if played is None:
                return False
            try:
                work.learn(step, played)
                break
            except self._faults as fault:
                self._repair(fault)
        repeated, self._repeated = self._repeated, False
        pacing.learn()
        if pacing.next_step is not None:
            self.publish()
        return work.finish(step, repeated)

    def _repair(self, fault: Exception) -> None:
        """Publish again, and have everything played again that was not learned."""
        if self._repeated:
            raise fault
        self._repeated = True
        logger.warning("publishing again, and repeating the episodes that are under way: %s", fault)
        self._work.discard()
        self._pacing.replay()
        self._pacing.publish(self._work.publish())


class EngineMeter:
    """Measures how long engines had nothing to do because nothing more was permitted to start.

    Groups of episodes are what engines are given; while fewer are unfinished than there are engines, the rest
    of the engines wait.

    Args:
        engines: How many there are.
        clock: Tells the time in seconds.
    """

    def __init__(self, engines: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._engines = engines
        self._clock = clock
        self._lock = threading.Lock()
        self._unfinished = 0
        self._waited = 0.0
        self._since = clock()

    def started(self, groups: int) -> None:
        """Count groups that engines were given."""
        self._count(groups)

    def ended(self) -> None:
        """Count a group as ended; may be called from any thread."""
        self._count(-1)

    def take(self) -> float:
        """Return the seconds that an engine waited on average since the last call."""
        with self._lock:
            self._advance()
            waited, self._waited = self._waited, 0.0
            return waited

    def _count(self, change: int) -> None:
        with self._lock:
            self._advance()
            self._unfinished += change

    def _advance(self) -> None:
        now = self._clock()
        idle = max(0, self._engines - self._unfinished) / self._engines
        self._waited += idle * (now - self._since)
        self._since = now


def age_metrics(ages: Mapping[int, int], max_staleness: int) -> dict[str, float]:
    """Return the mean and the largest age of a step's tokens, and the share of each age.

    Args:
        ages: Number of tokens by age, as `Pacing.ages` counts them.
        max_staleness: The largest age that is allowed.
    """
    tokens = max(1, sum(ages.values()))
    shares = {f"{STALENESS_SHARE}{age}": ages.get(age, 0) / tokens for age in range(max_staleness + 1)}
    mean = sum(age * count for age, count in ages.items()) / tokens
    return {STALENESS_MEAN: mean, STALENESS_MAX: float(max(ages, default=0)), **shares}
