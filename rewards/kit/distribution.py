"""How a reward's values are spread over a file of samples."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from posttrain.reward_spec import RewardSpec
from rewards.kit.samples import KitSample, groups_of
from rewards.workers.scorer import Scorer

BINS = 10
BAR = 40


class ScoredSample(TypedDict):
    """What a reward says of one sample.

    Attributes:
        id: The sample's.
        value: None where the reward does not apply or failed.
        parts: The value's components.
        note: One line on why.
        error: Why it failed, or "".
    """

    id: str
    value: float | None
    parts: dict[str, float]
    note: str
    error: str


def score_samples(
    reference: str, samples: Sequence[KitSample], params: Mapping[str, object], base_dir: Path | None = None
) -> list[ScoredSample]:
    """Score each sample's own answer; a group reward judges the samples of one prompt together.

    Raises:
        PluginError: If the reference leads to no reward.
        RewardError: If the reward does not take the parameters.
    """
    with Scorer([reference], base_dir=base_dir) as scorer:
        inputs = [sample.x for sample in samples]
        groups = groups_of(inputs) if scorer.rewards[0]["group"] else None
        results = scorer.submit([RewardSpec(reference, params=params)], inputs, groups).results()
    return [
        {
            "id": sample.id,
            "value": result.values.get(reference),
            "parts": result.parts.get(reference, {}),
            "note": result.notes.get(reference, ""),
            "error": result.errors.get(reference, ""),
        }
        for sample, result in zip(samples, results, strict=True)
    ]


def describe(rows: Sequence[ScoredSample]) -> str:
    """Write counts, mean and quartiles, and a histogram of bars for a terminal."""
    values = sorted(row["value"] for row in rows if row["value"] is not None)
    errors = [row for row in rows if row["error"]]
    lines = [
        f"{len(rows)} samples: {len(values)} scored, {len(errors)} failed,"
        f" {len(rows) - len(values) - len(errors)} not applicable"
    ]
    lines += [f"  failed {row['id']}: {row['error']}" for row in errors[:5]]
    if not values:
        return "\n".join(lines)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if values[1:] else values * 3
    lines.append(
        f"mean {statistics.fmean(values):.3f}   min {values[0]:.3f}"
        f"   quartiles {low:.3f} {middle:.3f} {high:.3f}   max {values[-1]:.3f}"
    )
    return "\n".join([*lines, *_histogram(values)])


def _histogram(values: Sequence[float]) -> list[str]:
    start, end = values[0], values[-1]
    if start == end:
        return []
    width = (end - start) / BINS
    counts = [0] * BINS
    for value in values:
        counts[min(BINS - 1, int((value - start) / width))] += 1
    most = max(counts)
    lines = []
    for i, n in enumerate(counts):
        bar = "█" * math.ceil(BAR * n / most)
        lines.append(f"  {start + i * width:7.3f} – {start + (i + 1) * width:7.3f}  {bar:<{BAR}} {n}")
    return lines
