"""Scores episodes outside this process: rules in a pool of killable processes, async rewards in a lane."""

import asyncio
import math
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from posttrain.reward_spec import RewardSpec
from posttrain.types import RewardInput, RewardResult
from rewards import wire
from rewards.budget import Budget
from rewards.manager import Call, Outcome, Verdicts, calls, check_specs, rounds
from rewards.parameters import parameter_fault, takes_budget
from rewards.sdk import ParameterError, RewardError
from rewards.workers.async_lane import AsyncLane
from rewards.workers.pool import WorkerPool

#: Episodes in one job: enough to make hand-over cheap, few enough to spread over the workers.
MAX_JOB = 16


@dataclass(frozen=True)
class PendingScores:
    """Episodes that are being scored; `await` it, or ask for the `results` and wait.

    Attributes:
        count: How many.
        verdicts: What was said of them so far.
        finished: Done once everything is said.
    """

    count: int
    verdicts: Verdicts
    finished: Future[None]

    def results(self) -> list[RewardResult]:
        """Wait for the verdicts that are missing; return one an episode, in order.

        Raises:
            StopScoring: If a reward says that there are no more scores.
        """
        self.finished.result()
        return self.verdicts.results()

    async def wait(self) -> list[RewardResult]:
        """Wait for the `results` within a running event loop."""
        await asyncio.wrap_future(self.finished)
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
        judge_budget: What judges may spend; None for no limit, and nothing is counted.

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
        judge_budget: Budget | None = None,
    ):
        self._references = list(dict.fromkeys(references))
        self._pool = WorkerPool(self._references, workers, deadline_s, base_dir, samples_per_worker)
        self._lane = AsyncLane(self._references, base_dir)
        self.rewards = self._pool.rewards
        self._deadlines = {loaded["name"]: loaded["deadline_s"] or deadline_s for loaded in self.rewards}
        self._groups = {loaded["name"] for loaded in self.rewards if loaded["group"]}
        self._async = {loaded["name"] for loaded in self.rewards if loaded["async"]}
        self._budgeted = {loaded["name"] for loaded in self.rewards if takes_budget(loaded["params"])}
        self._budget = None if judge_budget is None else judge_budget.params()
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
        specs = [self._with_budget(spec) for spec in specs]
        made = calls(specs, self._groups, len(inputs), groups)
        work = _Work(list(inputs), [wire.dumps(wire.input_to_json(x)) for x in inputs])
        finished: Future[None] = Future()
        finished.set_running_or_notify_cancel()  # whoever gives up waiting for it does not end it
        scoring = PendingScores(len(inputs), Verdicts(specs, len(inputs), groups), finished)
        with self._counting:
            self._queued += scoring.count
        later = [
            [call for call in made if call.spec.name in names] for names in rounds(list(specs), self._async)
        ]
        self._ask(scoring, work, later)
        return scoring

    def close(self) -> None:
        """Cancel what is queued, wait for what runs in the pool, then end the processes."""
        self._pool.close()
        self._lane.close()

    def __enter__(self) -> "Scorer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _with_budget(self, spec: RewardSpec) -> RewardSpec:
        """Return a judge's reward with the budget of all of them, and any other as it is."""
        if self._budget is None or spec.name not in self._budgeted:
            return spec
        return replace(spec, params={**spec.params, "budget": self._budget})

    def _ask(self, scoring: PendingScores, work: "_Work", later: Sequence[list[Call]]) -> None:
        """Ask for what is said in the next round; once all of it is said, go on with the round after it."""
        if not later:
            self._finish(scoring)
            return
        parts = self._start(scoring.verdicts.next_calls(later[0], work.inputs), work)
        left = len(parts)

        def one_less(made: list[Call], part: Future[list[list[Outcome]]]) -> None:
            nonlocal left
            try:
                said = [*zip(made, part.result(), strict=True)]
                with self._counting:
                    for call, outcomes in said:
                        self._counts["errors"] += sum(bool(outcome.error) for outcome in outcomes)
                        scoring.verdicts.add(call, outcomes)
                    left -= 1
                    last = not left
                if last:
                    self._ask(scoring, work, later[1:])
            except BaseException as error:  # cancelled; nobody may wait for ever
                self._finish(scoring, error)

        for made, part in parts:
            part.add_done_callback(partial(one_less, made))
        if not parts:
            self._ask(scoring, work, later[1:])

    def _start(
        self, made: Sequence[Call], work: "_Work"
    ) -> list[tuple[list[Call], Future[list[list[Outcome]]]]]:
        """Start calls, those of async rewards in the lane and the others in the pool."""
        parts: list[tuple[list[Call], Future[list[list[Outcome]]]]] = []
        for call in (call for call in made if call.spec.name in self._async):
            members = [work.bodies[i] for i in call.members]
            future = self._lane.submit(call, members, self._deadlines[call.spec.name])
            parts.append(([call], _as_job(future)))
        rules = [call for call in made if call.spec.name not in self._async]
        for job in self._jobs(rules, len(work.inputs)):
            needed = {i: work.bodies[i] for i in sorted({i for call in job for i in call.members})}
            parts.append((job, self._pool.submit(job, needed)))
        return parts

    def _finish(self, scoring: PendingScores, error: BaseException | None = None) -> None:
        with self._counting:
            if scoring.finished.done():
                return
            self._queued -= scoring.count
            if error is not None:
                scoring.finished.set_exception(error)
                return
            self._counts["samples"] += scoring.count
        scoring.finished.set_result(None)

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


@dataclass(frozen=True)
class _Work:
    """The episodes that are scored, and as JSON."""

    inputs: list[RewardInput]
    bodies: list[bytes]


def _as_job(future: Future[list[Outcome]]) -> Future[list[list[Outcome]]]:
    """Return the one call's outcomes as those of a job."""
    job: Future[list[list[Outcome]]] = Future()
    future.add_done_callback(lambda done: job.set_result([done.result()]))
    return job
