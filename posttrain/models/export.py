"""A checkpoint as something to give away: weights with adapters merged, and a model card of what was done."""

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from posttrain.config.model import infer_family
from posttrain.models.lora import is_adapter, write_merged

#: What a checkpoint holds for resuming, and for nothing else.
TRAINING_FILES = (
    "optimizer.pt",
    "optimizer.bin",
    "pytorch_model_fsdp.bin",
    "scheduler.pt",
    "scaler.pt",
    "trainer_state.json",
    "training_args.bin",
    "manifest.json",
    "README.md",
    "state",
    "rng_state*",
    "figures_*",
)


#: Begins the names of figures that a stage measures on held-out samples.
HELD_OUT = "eval_"


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
        shutil.copytree(checkpoint, unfinished, ignore=shutil.ignore_patterns(*TRAINING_FILES))
    (unfinished / "README.md").write_text(model_card(checkpoint), encoding="utf-8")
    if output.exists():
        output.rmdir()
    unfinished.rename(output)


def model_card(checkpoint: Path) -> str:
    """The card of a checkpoint: what it was made from, with which data and settings, and how it did.

    Args:
        checkpoint: A checkpoint's directory. Outside a run's directory the card says little.
    """
    run = next((parent for parent in checkpoint.absolute().parents if _is_run(parent)), None)
    config = json.loads((run / "resolved.json").read_text(encoding="utf-8")) if run else {}
    base = config.get("model", {}).get("name_or_path")
    task = "text-generation" if infer_family(checkpoint) == "text" else "image-text-to-text"
    header: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": task}
    if base is not None and not Path(base).is_absolute():
        header["base_model"] = base
    title = f"{config['name']}, {checkpoint.name}" if run else checkpoint.name
    parts = [f"---\n{yaml.safe_dump(header)}---\n\n# {title}\n"]
    if run is not None:
        stage = checkpoint.absolute().relative_to(run).parts[0]
        until = _stages_until(config["stages"], stage)
        names = {stage["name"] for stage in until}
        parts += [
            _made_of(base, until),
            _data(run, until),
            _results(run, names | {"base"}),
            _held_out(run, names),
            "## Settings\n\n```yaml\n" + (run / "config.yaml").read_text(encoding="utf-8") + "```\n",
        ]
    return "\n".join(part for part in parts if part)


def _is_run(directory: Path) -> bool:
    return (directory / "resolved.json").is_file() and (directory / "config.yaml").is_file()


def _stages_until(stages: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The stages that made a checkpoint of the stage of this name; none if there is no such stage."""
    names, found = [stage["name"] for stage in stages], []
    while name in names:
        index = names.index(name)
        found.append(stages[index])
        name = stages[index].get("start_from") or (names[index - 1] if index else "base")
        names = names[:index]
    return found[::-1]


def _made_of(base: str | None, stages: list[dict[str, Any]]) -> str:
    steps = [f"`{stage['name']}` ({stage['stage']})" for stage in stages]
    beginning = f"`{base}`" if base else "a new, tiny model"
    return f"Made from {beginning} by {', then '.join(steps) or 'no training'}.\n"


def _data(run: Path, stages: list[dict[str, Any]]) -> str:
    """What each stage was trained on, with the fingerprints of files."""
    path = run / "data.json"
    fingerprints = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    rows = []
    for stage in stages:
        shares = stage.get("data", {}).get("mixture", {})
        shares |= {task["data"]: task["ratio"] for task in stage.get("tasks", [])}
        rows += [
            (stage["name"], name, f"{share:.0%}", str(fingerprints.get(name, ""))[:12])
            for name, share in shares.items()
        ]
    return _table("Data", ("stage", "dataset", "share", "fingerprint"), rows)


def _rows(path: Path, stages: set[str]) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines that belong to the stages; none where there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [row for row in map(json.loads, lines) if row["stage"] in stages]


def _results(run: Path, stages: set[str]) -> str:
    """Accuracies with their intervals, of the stages up to this checkpoint's; at the end of each."""
    last = {(row["stage"], row["task"]): row for row in _rows(run / "evaluation.jsonl", stages)}
    rows = [
        (
            row["stage"],
            row["task"],
            f"{row['accuracy']:.3f} [{row['low']:.3f}, {row['high']:.3f}]",
            str(row["n"]),
        )
        for row in last.values()
    ]
    return _table("Results", ("after", "task", "accuracy [95 % interval]", "prompts"), rows)


def _held_out(run: Path, stages: set[str]) -> str:
    """What stages measured on held-out samples of their own: the first value of each figure and the last."""
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in _rows(run / "metrics.jsonl", stages):
        for name, value in row.items():
            if name.startswith(HELD_OUT) and value is not None:
                found.setdefault((row["stage"], name.removeprefix(HELD_OUT)), []).append((row["step"], value))
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
