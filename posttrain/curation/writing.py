"""Write the rows of a finished curation, kept.jsonl and dropped.jsonl, one row at a time."""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence

from posttrain.config.curation_steps import Step
from posttrain.curation.funnel import CurationReport
from posttrain.curation.journal import FAILED, KEPT, PENDING, Journal
from posttrain.data.dataset import Dataset
from posttrain.data.formats import write_canonical
from posttrain.files.durable import explaining_full_disk, sync
from posttrain.files.strict_json import JsonObject
from posttrain.types import Sample

#: From the numbers of a row and a step to the row as it comes to that step.
Current = Callable[[int, int], Sample]


def write_rows(
    report: CurationReport,
    dataset: Dataset,
    steps: Sequence[Step],
    journals: Sequence[Journal],
    current: Current,
) -> None:
    """Write kept.jsonl and dropped.jsonl, each completely or not at all.

    Args:
        report: The funnel, with which the numbers of rows must agree.
        dataset: The data.
        steps: The steps of the recipe.
        journals: The verdicts of each step.
        current: Returns a row as it comes to a step.

    Raises:
        DiskFull: If there is no space.
    """
    folder = report.directory
    written = _Counting()
    with explaining_full_disk(folder / "kept.jsonl"):
        kept = (row for row, fate in enumerate(journals[-1].fate) if fate == KEPT)
        write_canonical(written(current(row, len(steps)) for row in kept), folder / "kept.jsonl")
        assert written.count == report.kept, "kept.jsonl does not hold what the funnel says"
        unfinished = folder / ".dropped.jsonl.tmp"
        write_canonical(written(_dropped(len(dataset), steps, journals, current)), unfinished)
        with unfinished.open("a", encoding="utf-8") as file:
            for broken in dataset.broken:
                verdict = {"step": "read", "reason": "broken", "note": broken.reason, "scores": {}}
                file.write(json.dumps({"id": broken.place, "dropped": verdict}, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        assert written.count + len(dataset.broken) == report.read, "a row is missing or there twice"
        unfinished.replace(folder / "dropped.jsonl")
        sync(folder)


class _Counting:
    """Passes samples on and counts them."""

    count = 0

    def __call__(self, samples: Iterator[Sample]) -> Iterator[Sample]:
        for sample in samples:
            self.count += 1
            yield sample


def _dropped(
    rows: int, steps: Sequence[Step], journals: Sequence[Journal], current: Current
) -> Iterator[Sample]:
    """Yield every dropped row as it came to the step that dropped it, with the verdict and all scores."""
    for row in range(rows):
        fates = [journal.fate[row] for journal in journals]
        end = next((index for index, fate in enumerate(fates) if fate != KEPT), None)
        if end is None:
            continue
        assert fates[end] != PENDING, "a row was not judged"
        sample = current(row, end)
        verdict = _verdict(row, end, steps, journals)
        yield dataclasses.replace(sample, columns=sample.columns | {"dropped": verdict})


def _verdict(row: int, end: int, steps: Sequence[Step], journals: Sequence[Journal]) -> JsonObject:
    """Describe why step `end` dropped a row, with the scores of that step and those before."""
    scores: JsonObject = {
        step.name: {**outcome.scores}
        for step, journal in zip(steps[:end], journals, strict=False)
        if (outcome := journal.outcome(row)).scores
    }
    if journals[end].fate[row] == FAILED:
        reason, note = "failed", journals[end].error(row)
    else:
        last = journals[end].outcome(row)
        reason, note = last.reason, last.note
        if last.scores:
            scores[steps[end].name] = {**last.scores}
    return {"step": steps[end].name, "reason": reason, "note": note, "scores": scores}
