"""The episodes of a step while engines play them."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import Protocol

from posttrain.inference.pool import PoolError
from posttrain.inference.reading import Reading
from posttrain.rollout.episode import Limits
from posttrain.rollout.jobs import GroupJob, PlayedGroup
from posttrain.rollout.play import PlayGroup
from posttrain.training.on_policy.pacing import EngineMeter
from posttrain.types import Trajectory

#: Seconds between two looks whether the run is to stop.
LOOK_S = 0.25
#: Seconds in which some group of a step must end. Engines, tools and rewards have limits of their own, which
#: are shorter; this one is for what none of them has foreseen.
STALL_S = 3600.0


class EpisodePool(Protocol):
    """What plays episodes (see `RolloutPool`)."""

    @property
    def actors(self) -> int:
        """Number of engines."""
        ...

    def submit(self, jobs: Sequence[PlayGroup]) -> list[Future[PlayedGroup]]:
        """Have groups played; those given first come first."""
        ...

    def prompt_tokens(self, groups: Sequence[GroupJob]) -> Mapping[int, int]:
        """Count the tokens of the groups' prompts, by the group's index."""
        ...


class _Ends:
    """Notes when groups end.

    It must not know their futures. A future keeps its callbacks; one that leads back to it would keep the
    tokens of a step until garbage is collected, which may be many steps later.

    Attributes:
        last: When the last one ended.

    Args:
        meter: Told of each.
    """

    def __init__(self, meter: EngineMeter) -> None:
        self.last, self._meter = time.perf_counter(), meter

    def note(self, _: Future[PlayedGroup]) -> None:
        """Note that a group has ended; called in any thread."""
        self.last = time.perf_counter()
        self._meter.ended()


class StepInFlight:
    """A step's groups, from their start to the end of the last one, in one round or several.

    Args:
        pool: Plays them.
        meter: Told of each that starts and ends.
        groups: The groups, whose indices are their places.
        limits: Lengths of the episodes, by task.
        further: From the groups of a round to those that are played in the places of some; none ends it.
        stall: Seconds in which some group must end.
    """

    def __init__(
        self,
        pool: EpisodePool,
        meter: EngineMeter,
        groups: Sequence[GroupJob],
        limits: Mapping[str, Limits],
        further: Callable[[Sequence[PlayedGroup]], Sequence[GroupJob]] = lambda played: (),
        stall: float = STALL_S,
    ) -> None:
        self.groups = list(groups)
        self._pool, self._meter, self._limits = pool, meter, limits
        self._further, self._is_last = further, False
        self._stall = stall
        self._begun, self._ends = time.perf_counter(), _Ends(meter)
        self._futures = self._begin(groups)

    @property
    def seconds(self) -> float:
        """From the start of the first group to the end of the last that has ended."""
        return self._ends.last - self._begun

    def wait(self, stopping: Callable[[], bool]) -> list[PlayedGroup] | None:
        """Wait until every group has ended; return them in order, or None where the run is to stop.

        Raises:
            PoolError: If no group ends in a long time.
            Exception: What a group failed of.
        """
        since, is_stopping = time.monotonic(), stopping()
        while not is_stopping:
            self.go_on()
            left = self._unfinished()
            if left:
                wait(left, LOOK_S, FIRST_EXCEPTION)
            elif self._is_last:
                return [future.result() for future in self._futures]
            if len(self._unfinished()) < len(left):
                since = time.monotonic()
            elif time.monotonic() - since > self._stall:
                raise PoolError(self._stalled(len(left)))
            is_stopping = stopping()
        return None

    def go_on(self) -> None:
        """Begin the next round where the present one has ended well, and there is one."""
        if self._is_last or not all(future.done() and not _failed(future) for future in self._futures):
            return
        groups = self._further([future.result() for future in self._futures])
        self._is_last = not groups
        for group, future in zip(groups, self._begin(groups) if groups else (), strict=True):
            self.groups[group.group], self._futures[group.group] = group, future

    def cancel(self) -> None:
        """Give up the groups that have not ended."""
        for future in self._futures:
            future.cancel()

    def _unfinished(self) -> list[Future[PlayedGroup]]:
        """Return the groups that have not ended; raise what one of the others failed of."""
        for future in self._futures:
            if future.done():
                future.result()
        return [future for future in self._futures if not future.done()]

    def _begin(self, groups: Sequence[GroupJob]) -> list[Future[PlayedGroup]]:
        """Give groups to the engines."""
        self._meter.started(len(groups))
        futures = self._pool.submit([PlayGroup(group, self._limits[group.task]) for group in groups])
        for future in futures:
            future.add_done_callback(self._ends.note)
        return futures

    def _stalled(self, unfinished: int) -> str:
        """Say that nothing ends any more, and name a group that does not."""
        pairs = zip(self.groups, self._futures, strict=True)
        group = next(group for group, future in pairs if not future.done())
        return (
            f"none of {unfinished} groups that are under way has ended in {self._stall:.0f} s, among them"
            f" that of sample {group.sample.id!r} (task {group.task!r}). Look for a tool or a reward that"
            " hangs; go on with --resume"
        )


def _failed(future: Future[PlayedGroup]) -> bool:
    """Tell whether a group that has ended has no result."""
    return future.cancelled() or future.exception() is not None


def in_order(played: Sequence[PlayedGroup]) -> list[Trajectory]:
    """Return the trajectories of groups by group and episode."""
    trajectories = [trajectory for group in played for trajectory in group.trajectories]
    return sorted(trajectories, key=lambda trajectory: (trajectory.group, trajectory.episode))


def readings_in_order(played: Sequence[PlayedGroup]) -> list[Reading | None]:
    """Return what a teacher in engines says of each trajectory of `in_order`; nothing without one."""
    told = [pair for group in played for pair in zip(group.trajectories, group.readings, strict=False)]
    told.sort(key=lambda pair: (pair[0].group, pair[0].episode))
    return [reading for _, reading in told]
