"""Model cards: what a checkpoint was made from, with which data, under which licences, and how it did."""

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from posttrain.config.model import infer_family
from posttrain.run.directory import RunDir
from posttrain.run.metric_names import HELD_OUT
from posttrain.run.record import BASE, RESOLVED, RunRecord, StageRecord, read_record
from posttrain.run.rows import EVALUATION, METRICS, EvaluationRow, MetricsRow, read_rows

#: A model in the hub's cache: `…/models--Qwen--Qwen3-VL-2B-Instruct/snapshots/<commit>`.
HUB_CACHE = re.compile(r"/models--([^/]+)/snapshots/")
#: Runs that may follow one another, each from a checkpoint of the one before.
MAX_RUNS = 50


class ExportError(ValueError):
    """A checkpoint that cannot be exported as asked."""


def model_card(checkpoint: Path, licence: str = "", base_model: str = "") -> str:
    """Return the card of a checkpoint: what it was made from, with which data and settings, and how it did.

    Nothing in it tells where things lie on this machine.

    Args:
        checkpoint: A checkpoint's directory. Outside a run's directory the card says little.
        licence: The weights', as the hub calls it, such as `apache-2.0`; that of the base model if empty.
        base_model: Its name on the hub; if empty, what the run, or the run that made its model, began with.

    Raises:
        ExportError: If the settings that the run recorded cannot be read.
    """
    checkpoint = checkpoint.absolute()
    run = _run_of(checkpoint)
    record = RunRecord() if run is None else _record(run)
    origin = _origin(record.model)
    task = "text-generation" if infer_family(checkpoint) == "text" else "image-text-to-text"
    base = base_model or origin.name
    header = {"library_name": "transformers", "pipeline_tag": task}
    header |= _licence(licence or origin.licence, base)
    if base:
        header["base_model"] = base
    title = checkpoint.name if run is None else f"{record.name}, {checkpoint.name}"
    parts = [f"---\n{yaml.safe_dump(header)}---\n\n# {title}\n"]
    if run is not None:
        stages = record.lineage(checkpoint.relative_to(run.path).parts[0])
        names = {stage.name for stage in stages}
        parts += [
            _made_of(base or Path(record.model).name, stages),
            _data(run, stages),
            _results(run, names | {BASE}),
            _held_out(run, names),
            f"## Settings\n\n```yaml\n{_settings(run)}```\n",
        ]
    return "\n".join(part for part in parts if part)


@dataclass(frozen=True)
class _Origin:
    """The model that training began with.

    Attributes:
        name: On the hub; "" where it is not known.
        licence: As the hub calls it; "" where it is not known.
    """

    name: str = ""
    licence: str = ""


def _origin(model: str) -> _Origin:
    """Find out what a model is that runs name: a hub's, a checkpoint of another run, or a folder."""
    for _ in range(MAX_RUNS):
        folder = Path(model).expanduser()
        if not model or not folder.is_dir():
            return _Origin("" if folder.is_absolute() else model)
        said = _header_of(folder / "README.md")
        cached = HUB_CACHE.search(str(folder.absolute()))
        name = cached.group(1).replace("--", "/", 1) if cached else said.get("base_model")
        run = _run_of(folder.absolute())
        if run is None or cached:
            return _Origin(name if isinstance(name, str) else "", str(said.get("license") or ""))
        model = _record(run).model
    return _Origin()


def _header_of(card: Path) -> Mapping[str, object]:
    """Return what the head of a model card says; nothing where there is none."""
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    _, _, rest = text.partition("---\n") if text.startswith("---\n") else ("", "", "")
    try:
        said = yaml.safe_load(rest.partition("\n---")[0])
    except yaml.YAMLError:
        return {}
    return said if isinstance(said, dict) else {}


def _licence(licence: str, base: str) -> dict[str, str]:
    """Return the header's entries on the licence: that of the base model where nobody says another."""
    if licence:
        return {"license": licence}
    if not base:
        return {"license": "unknown"}
    return {
        "license": "other",
        "license_name": "as-the-base-model",
        "license_link": f"https://huggingface.co/{base}",
    }


def _settings(run: RunDir) -> str:
    """Return the settings that were given, paths cut down to their last part."""
    given = yaml.safe_load((run.path / "config.yaml").read_text(encoding="utf-8"))
    return yaml.safe_dump(_without_folders(given), sort_keys=False, allow_unicode=True)


def _without_folders(value: object) -> object:
    if isinstance(value, dict):
        kept = ((key, inner) for key, inner in value.items() if key != "base_dir")
        return {_without_folders(key): _without_folders(inner) for key, inner in kept}
    if isinstance(value, list):
        return [_without_folders(inner) for inner in value]
    is_path = isinstance(value, str) and (Path(value).is_absolute() or value.startswith("~"))
    return f"…/{Path(value).name}" if is_path and isinstance(value, str) else value


def _run_of(path: Path) -> RunDir | None:
    """Return the run in whose directory something lies."""
    return next((RunDir(parent) for parent in path.parents if _is_run(parent)), None)


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
    """Return a table of what each stage was trained on, with licences and fingerprints."""
    fingerprints, licences = run.fingerprints(), run.licences()
    rows = [
        (
            stage.name,
            _dataset(name),
            f"{share:.0%}",
            licences.get(name, "not recorded"),
            fingerprints.get(name, "")[:12],
        )
        for stage in stages
        for name, share in stage.shares.items()
    ]
    return _table("Data", ("stage", "dataset", "share", "licence", "fingerprint"), rows)


def _dataset(name: str) -> str:
    """Return a dataset's name, also where a run calls it by the path of its YAML file."""
    return Path(name).stem if name.endswith((".yaml", ".yml")) else name


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
