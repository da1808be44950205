"""Failures of the world in the episodes of a step: counted, and above a share of them the end of the run."""

from collections import Counter
from collections.abc import Sequence

from posttrain.run.metric_names import EPISODE_FAILED, TOOL_FAILURES
from posttrain.types import Trajectory


class WorldFailing(RuntimeError):
    """So many episodes failed for reasons that are not the model's that the rest would mislead."""


def failure_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Return the share of episodes that the world failed, and how often each tool did, retries included."""
    by_tool = Counter(failure.tool for each in trajectories for failure in each.failures)
    failed = sum(each.failed for each in trajectories)
    named = {TOOL_FAILURES + tool: float(count) for tool, count in sorted(by_tool.items())}
    return {EPISODE_FAILED: failed / max(1, len(trajectories)), **named}


def check_world(trajectories: Sequence[Trajectory], most: float, where: str) -> None:
    """End a run in which tools or environments fail too many episodes; a single one is never too many.

    Args:
        trajectories: Of a step, or of an evaluation.
        most: Largest share that may fail (`rollout.max_failed_share`).
        where: What it is of, for the message.

    Raises:
        WorldFailing: Naming the tool that failed most, and how.
    """
    failed = [each for each in trajectories if each.failed]
    if len(failed) < 2 or len(failed) <= most * len(trajectories):
        return
    last = [each.failures[-1] for each in failed]
    tool, count = Counter(failure.tool for failure in last).most_common(1)[0]
    reasons = Counter(failure.reason for failure in last if failure.tool == tool)
    raise WorldFailing(
        f"{where}: {len(failed)} of {len(trajectories)} episodes failed although the model did nothing wrong,"
        f" each twice; rollout.max_failed_share allows {most:.0%}. {count} of them failed by {tool!r}, most"
        f" often: {reasons.most_common(1)[0][0]}. Mend it and go on with --resume"
    )
