"""Held-out preference pairs as an evaluation: how many does the model tell apart, before DPO and after it?"""

from posttrain.evaluation.statistics import wilson_interval
from posttrain.run.directory import RunDir
from posttrain.run.metric_names import (
    HELD_OUT,
    HELD_OUT_PREFERENCE_ACCURACIES,
    HELD_OUT_PREFERENCE_MARGINS,
    HELD_OUT_PREFERRED,
)
from posttrain.run.rows import METRICS, EvaluationRow, MetricsRow, read_rows

#: Means that a row of `evaluation.jsonl` repeats.
MEANS = (HELD_OUT_PREFERENCE_ACCURACIES, HELD_OUT_PREFERENCE_MARGINS)


def pair_evaluations(
    run: RunDir, stage: str, task: str, pairs: int, origin: tuple[str, int]
) -> list[EvaluationRow]:
    """Return what a dpo stage measured on its held-out pairs, as rows of `evaluation.jsonl`.

    Args:
        run: The run's directory, whose `metrics.jsonl` has the figures.
        stage: The stage's name.
        task: Name of the held-out dataset.
        pairs: How many were measured.
        origin: Stage and step of the checkpoint that the stage started from; the row of step 0 is about it.
    """
    rows: list[EvaluationRow] = []
    for found in read_rows(run.path / METRICS, MetricsRow):
        share = found.figures.get(HELD_OUT_PREFERRED)
        if found.stage != stage or share is None:
            continue
        right = round(share * pairs)
        low, high = wilson_interval(right, pairs)
        of, step = (stage, found.step) if found.step else origin
        means = {
            name.removeprefix(HELD_OUT): value
            for name in MEANS
            if (value := found.figures.get(name)) is not None
        }
        rows.append(EvaluationRow(of, task, step, pairs, right / pairs, low, high, means))
    return rows
