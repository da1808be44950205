"""A checkpoint as something to give away: weights with adapters merged, and a model card of what was done."""

import shutil
from collections.abc import Container, Sequence
from pathlib import Path

import yaml

from posttrain.config.model import infer_family
from posttrain.models.lora import is_adapter, write_merged
from posttrain.run.directory import RunDir
from posttrain.run.metric_names import HELD_OUT
from posttrain.run.record import BASE, RESOLVED, RunRecord, StageRecord, read_record
from posttrain.run.rows import EVALUATION, METRICS, EvaluationRow, MetricsRow, read_rows

#: What a checkpoint holds for resuming, and for nothing else.
TRAINING_FILES = ("state", "trainer_state.json", "manifest.json", "README.md", "rng_state*", "figures_*")
#: The same in checkpoints of older versions, which can be exported still.
OLDER_TRAINING_FILES = ("*.pt", "*.bin")


class ExportError(ValueError):
    """A checkpoint that cannot be exported as asked."""


def export(checkpoint: Path, output: Path) -> None:
    """Write a checkpoint without what only resuming needs, adapters merged, with a model card.

    Args:
        checkpoint: A directory of weights or of adapters; within a run the card tells of the run.
        output: Where to write; may not exist, or be empty.

    Raises:
        ExportError: If the checkpoint is none, or the output holds something.
        LoraError: If the base of the adapters cannot be found.
    """
    if not (is_adapter(checkpoint) or any(checkpoint.glob("*.safetensors"))):
        raise ExportError(
            f"{checkpoint} is no checkpoint: it has no *.safetensors and no adapter_config.json"
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ExportError(f"{output} is not empty; choose another directory")
    unfinished = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    if is_adapter(checkpoint):
        write_merged(checkpoint, unfinished)
    else:
        shutil.copytree(
            checkpoint, unfinished, ignore=shutil.ignore_patterns(*TRAINING_FILES, *OLDER_TRAINING_FILES)
        )
    (unfinished / "README.md").write_text(model_card(checkpoint), encoding="utf-8")
    if output.exists():
        output.rmdir()
    unfinished.rename(output)


def model_card(checkpoint: Path) -> str:
    """Return the card of a checkpoint: what it was made from, with which data and settings, and how it did.

    Args:
        checkpoint: A checkpoint's directory. Outside a run's directory the card says little.

    Raises:
        ExportError: If the settings that the run recorded cannot be read.
    """
    checkpoint = checkpoint.absolute()
    run = next((RunDir(parent) for parent in checkpoint.parents if _is_run(parent)), None)
    record = RunRecord() if run is None else _record(run)
    task = "text-generation" if infer_family(checkpoint) == "text" else "image-text-to-text"
    header = {"library_name": "transformers", "pipeline_tag": task}
    if record.model and not Path(record.model).is_absolute():
        header["base_model"] = record.model
    title = checkpoint.name if run is None else f"{record.name}, {checkpoint.name}"
    parts = [f"---\n{yaml.safe_dump(header)}---\n\n# {title}\n"]
    if run is not None:
        stages = record.lineage(checkpoint.relative_to(run.path).parts[0])
        names = {stage.name for stage in stages}
        parts += [
            _made_of(record.model, stages),
            _data(run, stages),
            _results(run, names | {BASE}),
            _held_out(run, names),
            "## Settings\n\n```yaml\n" + (run.path / "config.yaml").read_text(encoding="utf-8") + "```\n",
        ]
    return "\n".join(part for part in parts if part)


def _is_run(directory: Path) -> bool:
    return (directory / RESOLVED).is_file() and (directory / "config.yaml").is_file()


def _record(run: RunDir) -> RunRecord:
    try:
        return read_record(run.path)
    except ValueError as error:
        raise ExportError(f"{run.path}: the settings of the run cannot be read ({error})") from error


def _made_of(base: str, stages: Sequence[StageRecord]) -> str:
    steps = [f"`{stage.name}` ({stage.kind})" for stage in stages]
    beginning = f"`{base}`" if base else "a new, tiny model"
    return f"Made from {beginning} by {', then '.join(steps) or 'no training'}.\n"


def _data(run: RunDir, stages: Sequence[StageRecord]) -> str:
    """Return a table of what each stage was trained on, with the fingerprints of files."""
    fingerprints = run.fingerprints()
    rows = [
        (stage.name, name, f"{share:.0%}", fingerprints.get(name, "")[:12])
        for stage in stages
        for name, share in stage.shares.items()
    ]
    return _table("Data", ("stage", "dataset", "share", "fingerprint"), rows)


def _results(run: RunDir, stages: Container[str]) -> str:
    """Return a table of accuracies with their intervals, at the end of each of the stages."""
    found = read_rows(run.path / EVALUATION, EvaluationRow)
    last = {(row.stage, row.task): row for row in found if row.stage in stages}
    rows = [
        (
            row.stage,
            row.task,
            f"{_share(row.accuracy)} [{_share(row.low)}, {_share(row.high)}]",
            "–" if row.n is None else str(row.n),
        )
        for row in last.values()
    ]
    return _table("Results", ("after", "task", "accuracy [95 % interval]", "prompts"), rows)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _held_out(run: RunDir, stages: Container[str]) -> str:
    """Return a table of what stages measured on held-out samples of their own: first and last value."""
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in read_rows(run.path / METRICS, MetricsRow):
        if row.stage not in stages:
            continue
        for name, value in row.figures.items():
            if name.startswith(HELD_OUT) and value is not None:
                found.setdefault((row.stage, name.removeprefix(HELD_OUT)), []).append((row.step, value))
    rows = [
        (stage, name, *(f"{value:.4g} (step {step})" for step, value in (measured[0], measured[-1])))
        for (stage, name), measured in found.items()
    ]
    return _table("Held-out samples of the stages", ("stage", "figure", "at first", "at last"), rows)


def _table(title: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    lines = [head, ("---",) * len(head), *rows]
    return f"## {title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
