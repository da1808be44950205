"""A checkpoint as something to give away: adapters merged, nothing of this machine in it, and a card."""

import json
import os
import shutil
from pathlib import Path

from posttrain.files.strict_json import Json
from posttrain.models.lora import is_adapter, write_merged
from posttrain.models.model_card import ExportError, model_card

#: What a checkpoint holds for resuming, and for nothing else.
TRAINING_FILES = ("state", "trainer_state.json", "manifest.json", "README.md", "rng_state*", "figures_*")
#: The same in checkpoints of older versions, which can be exported still.
OLDER_TRAINING_FILES = ("*.pt", "*.bin")


def export(checkpoint: Path, output: Path, licence: str = "", base_model: str = "") -> None:
    """Write a checkpoint without what only resuming needs, adapters merged, with a model card.

    Args:
        checkpoint: A directory of weights or of adapters; within a run the card tells of the run.
        output: Where to write; may not exist, or be empty.
        licence: See `model_card`.
        base_model: See `model_card`.

    Raises:
        ExportError: If the checkpoint is none, or the output holds something.
        LoraError: If the base of the adapters cannot be found.
    """
    if not checkpoint.is_dir():
        raise ExportError(f"there is no directory {checkpoint}")
    if not (is_adapter(checkpoint) or any(checkpoint.glob("*.safetensors"))):
        raise ExportError(
            f"{checkpoint} is no checkpoint: it has no *.safetensors and no adapter_config.json"
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ExportError(f"{output} is not an empty directory; choose another")
    card = model_card(checkpoint, licence, base_model)
    unfinished = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    if is_adapter(checkpoint):
        write_merged(checkpoint, unfinished)
    else:
        shutil.copytree(
            checkpoint, unfinished, ignore=shutil.ignore_patterns(*TRAINING_FILES, *OLDER_TRAINING_FILES)
        )
    (unfinished / "README.md").write_text(card, encoding="utf-8")
    _make_presentable(unfinished)
    if output.exists():
        output.rmdir()
    unfinished.rename(output)


def _make_presentable(directory: Path) -> None:
    """Take this machine's paths out of a model's settings, and let all read who may read what is made here.

    safetensors writes files that only their owner reads, whatever the umask; a copy keeps that.
    """
    for path in directory.glob("*.json"):
        if path.name != "tokenizer.json":  # a vocabulary has no paths, but entries that begin with a slash
            settings = json.loads(path.read_text(encoding="utf-8"))
            if (without := _without_paths(settings)) != settings:
                path.write_text(json.dumps(without, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.umask(umask := os.umask(0))  # there is no other way to ask for it
    for path in (directory, *directory.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def _without_paths(settings: Json) -> Json:
    """Return settings without the entries that say where something lies on this machine."""
    if isinstance(settings, list):
        return [_without_paths(value) for value in settings]
    if not isinstance(settings, dict):
        return settings
    kept = {
        key: value
        for key, value in settings.items()
        if not (key.endswith("name_or_path") and isinstance(value, str) and Path(value).is_absolute())
    }
    return {key: _without_paths(value) for key, value in kept.items()}
