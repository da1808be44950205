"""The models that a run starts from and asks: what is in a directory, and what is to be fetched."""

import json
from collections.abc import Iterator
from pathlib import Path

from posttrain.config.document import Key
from posttrain.config.model import base_model, infer_family
from posttrain.preflight.findings import Examination

_TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer.model")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")


def examine_models(look: Examination) -> None:
    """Look whether models in directories are whole, and note those that are fetched from the hub."""
    config = look.config
    models: list[tuple[Key, str, str]] = []
    if config.model.name_or_path is not None:
        models.append((("model", "name_or_path"), "model", config.model.name_or_path))
    for index, stage in enumerate(config.stages):
        models += [(("stages", index, *use.key), use.role, use.name) for use in stage.checkpoints()]
    for key, role, name in models:
        if not Path(name).is_dir():
            look.note(f"{role}: {name} is not on this machine; it is fetched from the hub at the start")
            continue
        for reason in _faults(Path(name)):
            look.problem(key, f"{name} {reason}", "fetch or export the checkpoint again")


def _faults(checkpoint: Path) -> Iterator[str]:
    """Tell what a checkpoint's directory lacks without which it cannot be loaded."""
    base = base_model(checkpoint)
    if base != checkpoint:
        if Path(base).is_absolute() and not Path(base).is_dir():
            yield f"holds adapters for {base}, which is not there"
        return
    if not (checkpoint / "config.json").is_file():
        yield "has no config.json"
        return
    index = checkpoint / "model.safetensors.index.json"
    parts = _parts(index) if index.is_file() else []
    if lost := [part for part in parts if not (checkpoint / part).is_file()]:
        yield f"lacks {len(lost)} of {len(parts)} files of weights, such as {lost[0]}"
    elif not any(checkpoint.glob("*.safetensors")):
        yield "has no *.safetensors weights"
    if not any((checkpoint / name).is_file() for name in _TOKENIZERS):
        yield f"has no tokenizer (none of {', '.join(_TOKENIZERS)})"
    elif infer_family(checkpoint) != "text" and not any((checkpoint / n).is_file() for n in _PROCESSORS):
        yield f"has no image processor (none of {', '.join(_PROCESSORS)})"


def _parts(index: Path) -> list[str]:
    """Return the files that an index of weights names; none if it cannot be read."""
    try:
        weights = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return sorted(set(map(str, weights.values())))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
