"""Scores episodes outside this process: rules in a pool of killable processes, async rewards in a lane."""

import asyncio
import math
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from posttrain.reward_spec import RewardSpec
from posttrain.types import RewardInput, RewardResult
from rewards import wire
from rewards.manager import Call, Outcome, Verdicts, calls, check_specs
from rewards.parameters import parameter_fault
from rewards.sdk import ParameterError, RewardError
from rewards.workers.async_lane import AsyncLane
from rewards.workers.pool import WorkerPool

#: Episodes in one job: enough to make hand-over cheap, few enough to spread over the workers.
MAX_JOB = 16


@dataclass
class PendingScores:
    """Episodes that are being scored; `await` it, or ask for the `results` and wait."""

    specs: list[RewardSpec]
    count: int
    parts: list[tuple[list[Call], Future[list[list[Outcome]]]]] = field(default_factory=list)

    def results(self) -> list[RewardResult]:
        """Wait for the verdicts that are missing; return one an episode, in order."""
        verdicts = Verdicts(self.specs, self.count)
        for made, future in self.parts:
            for call, outcomes in zip(made, future.result(), strict=True):
                verdicts.add(call, outcomes)
        return verdicts.results()

    async def wait(self) -> list[RewardResult]:
        """Wait for the `results` within a running event loop."""
        await asyncio.gather(*(asyncio.wrap_future(future) for _, future in self.parts))
        return self.results()


class Scorer:
    """Runs rewards with deadlines; whatever one of them does, the others and this process go on.

    Only the references given here can ever run; whoever submits work cannot name others.

    Args:
        references: The rewards that may be asked for.
        workers: Number of processes for rules; None for one a core, up to 16.
        deadline_s: Seconds that one call may take where its reward declares no limit of its own.
        base_dir: Folder against which file references are resolved.
        samples_per_worker: A process is replaced after so many episodes, which bounds what leaks.

    Attributes:
        rewards: What each reward says of itself: name, low, high, group, async,
            deadline_s, guarded, params, summary.

    Raises:
        PluginError: If a reference does not lead to a reward.

    Example:
        with Scorer(["math"], workers=2, deadline_s=5) as scorer:
            scorer.submit([RewardSpec("math")], episodes).results()
    """

    def __init__(
        self,
        references: Sequence[str],
        workers: int | None = None,
        deadline_s: float = 10.0,
        base_dir: Path | None = None,
        samples_per_worker: int = 5000,
    ):
        self._references = list(dict.fromkeys(references))
        self._pool = WorkerPool(self._references, workers, deadline_s, base_dir, samples_per_worker)
        self._lane = AsyncLane(self._references, base_dir)
        self.rewards = self._pool.rewards
        self._deadlines = {loaded["name"]: loaded["deadline_s"] or deadline_s for loaded in self.rewards}
        self._groups = {loaded["name"] for loaded in self.rewards if loaded["group"]}
        self._async = {loaded["name"] for loaded in self.rewards if loaded["async"]}
        self._counting = threading.Lock()
        self._queued = 0
        self._counts: Counter[str] = Counter()

    @property
    def queued(self) -> int:
        """Episodes that have been submitted and are not scored yet."""
        return self._queued

    @property
    def counts(self) -> Counter[str]:
        """Samples, errors, hangs, crashes and recycled workers since the start."""
        return self._counts + self._pool.counts + self._lane.counts

    def check(self, specs: Sequence[RewardSpec]) -> None:
        """Refuse rewards that this scorer was not started with.

        Raises:
            RewardError: Naming the reward and those that are there.
        """
        check_specs(specs)
        for spec in specs:
            if spec.name not in self._references:
                known = ", ".join(self._references)
                raise RewardError(
                    f"reward {spec.name!r} is not served here; a server serves only the rewards that it was"
                    f" started with: {known}"
                )

    def check_params(self, specs: Sequence[RewardSpec], complete: bool = True) -> None:
        """Refuse parameters that the rewards do not take, once and before anything is scored.

        Args:
            specs: Rewards of this scorer.
            complete: Whether no more parameters will be given.

        Raises:
            ParameterError: Naming the reward, the parameter and the nearest one.
        """
        known = {loaded["name"]: loaded["params"] for loaded in self.rewards}
        for spec in specs:
            if fault := parameter_fault(known[spec.name], spec.params, complete):
                raise ParameterError(f"reward {spec.name!r}: {fault}")

    def submit(
        self, specs: Sequence[RewardSpec], inputs: Sequence[RewardInput], groups: Sequence[int] | None = None
    ) -> PendingScores:
        """Queue episodes.

        Args:
            specs: The rewards.
            inputs: The episodes.
            groups: The number of each one's group, which group rewards need.

        Raises:
            RewardError: If a reward is not among those of this scorer, lacks groups, or does not take its
                parameters.
            WireError: If an episode cannot be written as JSON.
        """
        self.check(specs)
        self.check_params(specs)
        made = calls(specs, self._groups, len(inputs), groups)
        bodies = [wire.dumps(wire.input_to_json(x)) for x in inputs]
        scoring = PendingScores(list(specs), len(inputs))
        for call in (call for call in made if call.spec.name in self._async):
            members = [bodies[i] for i in call.members]
            future = self._lane.submit(call, members, self._deadlines[call.spec.name])
            scoring.parts.append(([call], _as_job(future)))
        for job in self._jobs([call for call in made if call.spec.name not in self._async], len(inputs)):
            needed = {i: bodies[i] for i in sorted({i for call in job for i in call.members})}
            scoring.parts.append((job, self._pool.submit(job, needed)))
        self._count_when_done(scoring)
        return scoring

    def close(self) -> None:
        """Cancel what is queued, wait for what runs in the pool, then end the processes."""
        self._pool.close()
        self._lane.close()

    def __enter__(self) -> "Scorer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _count_when_done(self, scoring: PendingScores) -> None:
        left = len(scoring.parts)

        def one_less(part: Future[list[list[Outcome]]]) -> None:
            nonlocal left
            outcomes = [] if part.cancelled() else [o for members in part.result() for o in members]
            with self._counting:
                left -= 1
                self._counts["errors"] += sum(bool(outcome.error) for outcome in outcomes)
                if left == 0:
                    self._queued -= scoring.count
                    self._counts["samples"] += scoring.count

        with self._counting:
            self._queued += scoring.count if scoring.parts else 0
        for _, future in scoring.parts:
            future.add_done_callback(one_less)

    def _jobs(self, made: Sequence[Call], count: int) -> list[list[Call]]:
        """Make a job for each call of a group reward, and one for every few episodes of the others."""
        most = min(MAX_JOB, self._pool.samples_per_worker)
        size = max(1, min(most, math.ceil(count / (2 * self._pool.workers))))
        jobs = [[call] for call in made if call.spec.name in self._groups]
        together: dict[int, list[Call]] = {}
        for call in made:
            if call.spec.name not in self._groups:
                together.setdefault(call.members[0] // size, []).append(call)
        return jobs + [sorted(job, key=lambda call: call.members) for job in together.values()]


def _as_job(future: Future[list[Outcome]]) -> Future[list[list[Outcome]]]:
    """Return the one call's outcomes as those of a job."""
    job: Future[list[list[Outcome]]] = Future()
    future.add_done_callback(lambda done: job.set_result([done.result()]))
    return job
