"""Several rewards for one episode: run each, keep every part, add up what counts."""

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from posttrain.reward_spec import RewardSpec, closed_gate, reward_list_fault
from posttrain.types import RewardInput, RewardResult, Score
from rewards.sdk import LeftOut, Reward, RewardError, StopScoring, load_reward

#: Errors and notes are for people; a scorer's megabyte of text is cut.
MAX_TEXT = 500


@dataclass(frozen=True)
class Outcome:
    """What one reward said of one episode.

    Attributes:
        score: Its score; None if it does not apply, or failed.
        error: Why it failed.
        note: Why it was not asked.
        left_out: Whether it is to be left out of the episode's whole group.
        stop: Whether its error ends the run.
    """

    score: Score | None = None
    error: str = ""
    note: str = ""
    left_out: bool = False
    stop: bool = False


@dataclass(frozen=True)
class Call:
    """One call of a reward: on one episode, or on all those of a group.

    Attributes:
        spec: The reward.
        members: Indices of the episodes.
    """

    spec: RewardSpec
    members: tuple[int, ...]


class RewardManager:
    """Scores episodes in this process: for notebooks, tests and other people's evaluation loops.

    It needs no server and no processes, so it starts at once and a debugger can step into a reward. For the
    same reason there is no deadline: a reward that hangs, hangs its caller. Runs use the server, and
    `posttrain rewards check` and `score` use `rewards.workers.scorer.Scorer`: both give the same verdicts
    out of processes that can be killed.

    Args:
        specs: The rewards, each at most once.
        base_dir: Folder against which file references are resolved; the working directory if None.

    Raises:
        PluginError: If a reference does not lead to a reward.
        RewardError: If a reward stands twice in the list, or does not take its parameters.

    Example:
        RewardManager([RewardSpec("math"), RewardSpec("my_rewards.py:neatness", 0.2)]).score(episodes)
    """

    def __init__(self, specs: Sequence[RewardSpec], base_dir: Path | None = None):
        check_specs(specs)
        self.specs = list(specs)
        self.rewards = {spec.name: load_reward(spec.name, base_dir) for spec in specs}
        for spec in self.specs:
            self.rewards[spec.name].check(spec.params)

    def score(self, inputs: Sequence[RewardInput], groups: Sequence[int] | None = None) -> list[RewardResult]:
        """Score episodes: one verdict each, in order.

        Args:
            inputs: The episodes.
            groups: The number of each one's group, which group rewards need.

        Raises:
            RewardError: If there is a group reward and no groups.
            StopScoring: If a reward says that there are no more scores.
        """
        group_rewards = {name for name, loaded in self.rewards.items() if loaded.group}
        waiting = {name for name, loaded in self.rewards.items() if loaded.is_async}
        made = calls(self.specs, group_rewards, len(inputs), groups)
        verdicts = Verdicts(self.specs, len(inputs), groups)
        for names in rounds(self.specs, waiting):
            for call in verdicts.next_calls([call for call in made if call.spec.name in names], inputs):
                members = [inputs[i] for i in call.members]
                verdicts.add(call, evaluate(self.rewards[call.spec.name], members, call.spec.params))
        return verdicts.results()


class Verdicts:
    """Collects what each call said and adds it up.

    Args:
        specs: The rewards.
        count: Number of episodes.
        groups: The number of each one's group; each is by itself if None.
    """

    def __init__(self, specs: Sequence[RewardSpec], count: int, groups: Sequence[int] | None = None):
        self._specs = list(specs)
        self._groups = list(range(count)) if groups is None else list(groups)
        self._outcomes: list[dict[str, Outcome]] = [{} for _ in range(count)]

    def add(self, call: Call, outcomes: Sequence[Outcome]) -> None:
        """Keep a call's outcomes, one for each of its members."""
        for member, outcome in zip(call.members, outcomes, strict=True):
            self._outcomes[member][call.spec.name] = outcome

    def next_calls(self, made: Sequence[Call], inputs: Sequence[RewardInput]) -> list[Call]:
        """Return the calls of a round with the members that they are to be made for.

        In the first round that is all of them. Later ones have rewards that are asked only where their
        conditions hold; of the other episodes it is kept why they were not asked.

        Args:
            made: The calls of the round.
            inputs: The episodes.
        """
        if not any(self._outcomes):
            return list(made)
        open_calls = [
            replace(call, members=tuple(i for i in call.members if self._asks(call.spec, i, inputs[i])))
            for call in made
        ]
        return [call for call in open_calls if call.members]

    def _asks(self, spec: RewardSpec, member: int, x: RewardInput) -> bool:
        """Tell whether a reward is asked of an episode; else keep why not."""
        known, gates = self._outcomes[member], [*spec.only_if, *spec.unless]
        if any(gate not in known for gate in gates):
            return True  # the conditions go round in a circle
        if failed := next((gate for gate in gates if known[gate].error), ""):
            known[spec.name] = Outcome(note=f"not asked: {failed} failed")
            return False
        closed = closed_gate(spec, {gate: _value(known[gate]) for gate in gates})
        if not closed or audited(spec, x):
            return True
        known[spec.name] = Outcome(note=f"not asked: {closed}")
        return False

    def results(self) -> list[RewardResult]:
        """Return one verdict an episode, in order; every call must have been added.

        Raises:
            StopScoring: If a reward says that there are no more scores.
        """
        left_out: dict[tuple[int, str], str] = {}
        for group, by_name in zip(self._groups, self._outcomes, strict=True):
            for name, outcome in by_name.items():
                if outcome.stop:
                    raise StopScoring(outcome.error)
                if outcome.left_out:
                    left_out[group, name] = outcome.note
        for (group, name), reason in left_out.items():
            for member, by_name in zip(self._groups, self._outcomes, strict=True):
                if member == group:
                    by_name[name] = Outcome(note=reason)
        return [combine(self._specs, [by_name[s.name] for s in self._specs]) for by_name in self._outcomes]


def audited(spec: RewardSpec, x: RewardInput) -> bool:
    """Tell whether a reward is asked of an episode although its conditions fail: by chance, repeatably."""
    said = "\0".join([spec.name, *(message.text for message in (*x.prompt, *x.response)), x.answer])
    drawn = int.from_bytes(hashlib.blake2b(said.encode("utf-8", "replace"), digest_size=8).digest())
    return drawn < spec.audit_share * 2**64


def rounds(specs: Sequence[RewardSpec], waiting: Collection[str]) -> list[set[str]]:
    """Sort rewards by when they are asked: one that waits for a service, after all that its conditions name.

    So nothing is asked, and paid for, that would not count. Whatever is computed here is computed at once.

    Args:
        specs: The rewards.
        waiting: Names of those that wait for a service.
    """
    left = {spec.name: {*spec.only_if, *spec.unless} for spec in specs if spec.name in waiting}
    first = {spec.name for spec in specs} - {name for name, gates in left.items() if gates}
    made, known = [first], set(first)
    while left := {name: gates for name, gates in left.items() if name not in known}:
        # Of those whose conditions go round in a circle all are asked.
        ready = {name for name, gates in left.items() if gates <= known} or set(left)
        made.append(ready)
        known |= ready
    return [names for names in made if names]


def _value(outcome: Outcome) -> float | None:
    return outcome.score.value if outcome.score else None


def calls(
    specs: Sequence[RewardSpec], group_rewards: Collection[str], count: int, groups: Sequence[int] | None
) -> list[Call]:
    """List the calls that score `count` episodes: for each reward one an episode, or one a group.

    Raises:
        RewardError: If a group reward has no groups to judge, or their number is not that of the episodes.
    """
    if groups is not None and len(groups) != count:
        raise RewardError(f"groups has {len(groups)} entries for {count} episodes; give one for each")
    made = []
    for spec in specs:
        if spec.name not in group_rewards:
            made += [Call(spec, (i,)) for i in range(count)]
            continue
        if groups is None:
            raise RewardError(
                f"{spec.name!r} judges groups of episodes: say in `groups` which ones belong together"
            )
        members: dict[int, list[int]] = {}
        for i, group in enumerate(groups):
            members.setdefault(group, []).append(i)
        made += [Call(spec, tuple(indices)) for indices in members.values()]
    return made


def check_specs(specs: Sequence[RewardSpec]) -> None:
    """Refuse a list that is empty, names a reward twice, or has a weight or condition that makes no sense.

    Raises:
        RewardError: Naming the reward.
    """
    if fault := reward_list_fault(specs):
        raise RewardError(f"rewards: {'; '.join(fault)}")


def evaluate(loaded: Reward, xs: Sequence[RewardInput], params: Mapping[str, object]) -> list[Outcome]:
    """Call a reward once; whatever it raises becomes an error of each episode, never a score."""
    try:
        return [Outcome(score) for score in loaded.judge(xs, params)]
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # plugins and their libraries also raise SystemExit and worse
        return [failure(error)] * len(xs)


def failure(error: BaseException) -> Outcome:
    """Return what is kept of an exception."""
    if isinstance(error, LeftOut):
        return Outcome(note=str(error)[:MAX_TEXT], left_out=True)
    if isinstance(error, StopScoring):
        return Outcome(error=str(error)[:MAX_TEXT], stop=True)
    return Outcome(error=f"{type(error).__name__}: {error}"[:MAX_TEXT])


def combine(specs: Sequence[RewardSpec], outcomes: Sequence[Outcome]) -> RewardResult:
    """Add up Σ wᵢ·vᵢ over the rewards that apply and whose conditions hold.

    A reward that does not apply is left out with its weight, and so is one with a condition (`only_if`,
    `unless`) that fails. One error, or no reward that applies, makes the total None: the episode is
    masked, because any number would be invented.
    """
    result = RewardResult(total=None)
    for spec, outcome in zip(specs, outcomes, strict=True):
        if outcome.error:
            result.errors[spec.name] = outcome.error
            continue
        result.values[spec.name] = outcome.score.value if outcome.score else None
        if outcome.score and outcome.score.parts:
            result.parts[spec.name] = dict(outcome.score.parts)
        if note := outcome.score.note if outcome.score else outcome.note:
            result.notes[spec.name] = note[:MAX_TEXT]
    if result.errors:
        return result
    if all(value is None for value in result.values.values()):
        result.errors["total"] = "none of the rewards applies to this sample"
        return result
    total = 0.0
    for spec in specs:
        value = result.values[spec.name]
        if value is None:
            continue
        if closed := closed_gate(spec, result.values):
            result.notes[spec.name] = f"not counted: {closed}. {result.notes.get(spec.name, '')}".strip()
            continue
        total += spec.weight * value
    if math.isfinite(total):
        result.total = total
    else:
        result.errors["total"] = "the weighted sum is too large for a number"
    return result
