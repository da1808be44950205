"""Several rewards for one episode: run each, keep every part, add up what counts."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from posttrain.reward_spec import RewardSpec, closed_gate, reward_list_fault
from posttrain.types import RewardInput, RewardResult, Score
from rewards.sdk import Reward, RewardError, load_reward

#: Errors and notes are for people; a scorer's megabyte of text is cut.
MAX_TEXT = 500


@dataclass(frozen=True)
class Outcome:
    """What one reward said of one episode: a score, None (does not apply) or an error's reason."""

    score: Score | None = None
    error: str = ""


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
        """
        group_rewards = {name for name, loaded in self.rewards.items() if loaded.group}
        verdicts = Verdicts(self.specs, len(inputs))
        for call in calls(self.specs, group_rewards, len(inputs), groups):
            members = [inputs[i] for i in call.members]
            verdicts.add(call, evaluate(self.rewards[call.spec.name], members, call.spec.params))
        return verdicts.results()


class Verdicts:
    """Collects what each call said and adds it up."""

    def __init__(self, specs: Sequence[RewardSpec], count: int):
        self._specs = list(specs)
        self._outcomes: list[dict[str, Outcome]] = [{} for _ in range(count)]

    def add(self, call: Call, outcomes: Sequence[Outcome]) -> None:
        """Keep a call's outcomes, one for each of its members."""
        for member, outcome in zip(call.members, outcomes, strict=True):
            self._outcomes[member][call.spec.name] = outcome

    def results(self) -> list[RewardResult]:
        """Return one verdict an episode, in order; every call must have been added."""
        return [combine(self._specs, [by_name[s.name] for s in self._specs]) for by_name in self._outcomes]


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
    return Outcome(error=f"{type(error).__name__}: {error}"[:MAX_TEXT])


def combine(specs: Sequence[RewardSpec], outcomes: Sequence[Outcome]) -> RewardResult:
    """Add up Σ wᵢ·vᵢ over the rewards that apply and whose conditions hold.

    A reward that does not apply is left out with its weight, and so is one with a condition (`only_if`) that
    fails or does not apply. One error, or no reward that applies, makes the total None: the episode is
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
        if outcome.score and outcome.score.note:
            result.notes[spec.name] = outcome.score.note[:MAX_TEXT]
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
