"""What goes wrong in a comparison, told from its figures: each sign has a rule that one can check."""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

from posttrain.run import metric_names as metric
from posttrain.viewer.charts import short, smooth
from posttrain.viewer.comparison import CellResult, Comparison, Setting

#: The reward of the last third of the steps is by so much below its best smoothed value.
REWARD_FALL = 0.1
#: The entropy of the last third of the steps, as a share of that of the first.
ENTROPY_LEFT = 0.5
#: Share of the tokens (or sequences) that are clipped, in the mean of all steps.
CLIPPED = 0.3
#: A twentieth of the tokens have a gate below this at some step.
GATE_LEAST = 0.5
#: The updates of the last third of the steps move the policy so many times as far as those of the first.
KL_GROWTH = 10.0
#: The rules in words, for the page.
RULES = (
    f"a reward whose last third is {REWARD_FALL:g} below its best (smoothed); an entropy that has halved; "
    f"more than {CLIPPED:.0%} clipped in the mean of all steps; a gate below {GATE_LEAST:g} for a twentieth "
    f"of the tokens; updates that move the policy {KL_GROWTH:g} times as far in the last third as in the "
    "first; updates that were skipped; an accuracy below that of the start, intervals apart"
)


@dataclass(frozen=True)
class Sign:
    """A sign of failure.

    Attributes:
        setting: Where it was seen.
        seed: Of the cell; "" where seeds were not varied.
        text: What was seen.
    """

    setting: str
    seed: str
    text: str


def signs(comparison: Comparison) -> list[Sign]:
    """Return the signs of failure in a comparison, setting by setting."""
    return [
        Sign(setting.name, cell.seed, text)
        for setting in comparison.settings
        for cell in setting.cells
        for text in (*_of_cell(cell), *_below_start(comparison, setting, cell))
    ]


def _of_cell(cell: CellResult) -> Iterator[str]:
    rewards = smooth(cell.points(metric.REWARD_MEAN))
    last = cell.late(metric.REWARD_MEAN)
    if rewards and last is not None:
        step, best = max(rewards, key=lambda point: point[1])
        if last < best - REWARD_FALL:
            yield f"the reward fell from {short(best)} at step {short(step)} to {short(last)}"
    before, after = cell.early(metric.ENTROPY), cell.late(metric.ENTROPY)
    if before and after is not None and after < ENTROPY_LEFT * before:
        yield f"the entropy fell from {short(before)} to {short(after)}"
    shares = [value for _, value in cell.points(metric.CLIP_FRACTION)]
    if shares and fmean(shares) > CLIPPED:
        yield f"{fmean(shares):.0%} were clipped"
    for name, of in ((metric.GATE_POSITIVE, "good"), (metric.GATE_NEGATIVE, "bad")):
        gates = cell.points(f"{name}_{metric.QUANTILES[0]}")
        if gates and min(gates, key=lambda point: point[1])[1] < GATE_LEAST:
            step, least = min(gates, key=lambda point: point[1])
            told = f"a twentieth of the tokens of {of} episodes had a gate below {short(least)}"
            yield f"at step {short(step)} {told}"
    before, after = cell.early(metric.KL_OLD_NEW), cell.late(metric.KL_OLD_NEW)
    if before and after is not None and after > KL_GROWTH * before:
        yield f"an update's KL divergence grew from {short(before)} to {short(after)}"
    if skipped := sum(value for _, value in cell.points(metric.UPDATE_SKIPPED)):
        yield f"{skipped:.0f} updates were not finite, and skipped"


def _below_start(comparison: Comparison, setting: Setting, cell: CellResult) -> Iterator[str]:
    for task, row in cell.accuracies.items():
        start = comparison.start.get(task)
        if start is None or start.low is None or row.high is None or row.accuracy is None:
            continue
        if row.high < start.low:
            yield f"{task} fell below where it started: {row.accuracy:.1%} after {start.accuracy:.1%}"
