"""How far the judges of a step agree with its rules, on the episodes that both have scored."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from posttrain.config import RlTask
from posttrain.joints import Plugins, Reward
from posttrain.reward_spec import OUTCOME
from posttrain.run.agreement import Confusion, agreement_figures
from posttrain.types import Trajectory


@dataclass(frozen=True)
class JudgedPair:
    """A judge and a rule of the same task.

    Attributes:
        judge, rule: Names of the rewards.
        judge_good, rule_good: The value from which on each calls an episode good.
    """

    judge: str
    rule: str
    judge_good: float
    rule_good: float


def judged_pairs(plugins: Plugins, tasks: Sequence[RlTask], base_dir: Path) -> dict[str, list[JudgedPair]]:
    """Pair each judge of a task, a reward that waits for a service, with each rule that rewards answers.

    A penalty says nothing of how good an answer is, and is no such rule.

    Args:
        plugins: Load the rewards.
        tasks: The tasks.
        base_dir: Folder against which file references are resolved.
    """
    found: dict[str, list[JudgedPair]] = {}
    for task in tasks:
        loaded = {ref.name: plugins.load_reward(ref.name, base_dir) for ref in task.rewards}
        judges = [name for name, reward in loaded.items() if reward.is_async]
        rules = [name for name, reward in loaded.items() if not reward.is_async and reward.high > 0]
        pairs = [
            JudgedPair(judge, rule, _good(judge, loaded[judge]), _good(rule, loaded[rule]))
            for judge in judges
            for rule in rules
        ]
        if pairs:
            found[task.name] = pairs
    return found


def agreement_metrics(
    trajectories: Sequence[Trajectory], pairs: Mapping[str, Sequence[JudgedPair]]
) -> dict[str, float]:
    """Compare judges with rules over the episodes of a step.

    Args:
        trajectories: The episodes.
        pairs: Who is compared, by task.
    """
    metrics: dict[str, float] = {}
    for task, compared in pairs.items():
        verdicts = [each.reward.values for each in trajectories if each.task == task and each.reward]
        for pair in compared:
            scores = [
                (judge, rule)
                for values in verdicts
                if (judge := values.get(pair.judge)) is not None
                and (rule := values.get(pair.rule)) is not None
            ]
            if scores:
                confusion = Confusion.of(
                    (judge >= pair.judge_good, rule >= pair.rule_good) for judge, rule in scores
                )
                metrics |= agreement_figures(task, pair.judge, pair.rule, confusion, _correlation(scores))
    return metrics


def _good(name: str, reward: Reward) -> float:
    """Return the middle of a reward's range; what environments give may have any size, and 1 is success."""
    return 0.5 if name.startswith(OUTCOME) else (reward.low + reward.high) / 2


def _correlation(scores: Sequence[tuple[float, float]]) -> float | None:
    """Compute Pearson's correlation; None where one of both never varies."""
    judges, rules = zip(*scores, strict=True)
    if len({*judges}) < 2 or len({*rules}) < 2:
        return None
    try:
        return statistics.correlation(judges, rules)
    except statistics.StatisticsError:  # so small a difference that its square is zero
        return None
