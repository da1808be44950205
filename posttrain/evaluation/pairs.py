"""Held-out preference pairs as an evaluation: how many does the model tell apart, before DPO and after it?"""

import json
from typing import Any

from posttrain.evaluation.statistics import wilson_interval
from posttrain.run.directory import RunDir

#: Metric of a dpo stage: share of the held-out pairs whose preferred answer is the likelier one to the model.
#: Unlike TRL's `rewards/accuracies`, which compares with the reference, it also means something before the
#: first step.
PREFERRED = "eval_preferred"
#: Means that a row of `evaluation.jsonl` repeats.
MEANS = ("eval_rewards/accuracies", "eval_rewards/margins")


def pair_evaluations(
    run: RunDir, stage: str, task: str, pairs: int, origin: tuple[str, int]
) -> list[dict[str, Any]]:
    """What a dpo stage measured on its held-out pairs, as rows of `evaluation.jsonl`.

    Args:
        run: The run's directory, whose `metrics.jsonl` has the figures.
        stage: The stage's name.
        task: Name of the held-out dataset.
        pairs: How many were measured.
        origin: Stage and step of the checkpoint that the stage started from; the row of step 0 is about it.
    """
    lines = (run.path / "metrics.jsonl").read_text("utf-8").splitlines()
    measured = [row for row in map(json.loads, lines) if row["stage"] == stage and PREFERRED in row]
    rows = []
    for found in measured:
        right = round(found[PREFERRED] * pairs)
        low, high = wilson_interval(right, pairs)
        of, step = (stage, found["step"]) if found["step"] else origin
        row = {"stage": of, "task": task, "step": step, "n": pairs, "accuracy": right / pairs}
        means = {name.removeprefix("eval_"): found[name] for name in MEANS}
        rows.append(row | {"low": low, "high": high, "metrics": means})
    return rows
