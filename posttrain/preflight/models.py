"""The models that a run starts from and asks: what is in a directory, and what is to be fetched."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from posttrain.config import RolloutConfig, RunConfig
from posttrain.config.document import Key
from posttrain.config.model import base_model, infer_family, read_model_config
from posttrain.config.tiny_model import TinyModelStage
from posttrain.preflight.findings import Examination

_TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer.model")
#: Where a model says that its positions are stretched.
_SCALINGS = ("rope_scaling", "rope_parameters")
#: What two models must have alike to be shown the same image by the same tokens.
_IMAGE_SIZES = ("patch_size", "merge_size", "temporal_patch_size")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")


def examine_models(look: Examination) -> None:
    """Look whether models in directories are whole, and note those that are fetched from the hub."""
    config, own = look.config, look.config.model.name_or_path
    if own is not None:
        _examine_model(look, ("model", "name_or_path"), "model", own)
    for key, rollout in _rollouts(config):
        if own is not None:
            examine_length(look, (*key, "max_length"), own, rollout.max_length)
        elif any(isinstance(stage, TinyModelStage) for stage in config.stages):
            _compare(look, (*key, "max_length"), rollout.max_length, "a tiny model", TinyModelStage.positions)
    for index, stage in enumerate(config.stages):
        for use in stage.checkpoints():
            _examine_model(look, ("stages", index, *use.key), use.role, use.name)
            examine_length(look, ("stages", index, *use.length_key), use.name, use.max_length)
            if use.same_tokens and own is not None:
                for compare in (_compare_tokens, _compare_images):
                    compare(look, ("stages", index, *use.key), use.role, use.name, own)


def examine_length(look: Examination, key: Key, checkpoint: str, length: int) -> None:
    """Look whether an engine can serve a model of a directory for so many tokens."""
    _compare(look, key, length, checkpoint, _longest(read_model_config(checkpoint)))


def _compare_tokens(look: Examination, key: Key, role: str, name: str, own: str) -> None:
    """Look whether two models have the same tokens, where both are in directories."""
    theirs, ours = _vocabulary(Path(name)), _vocabulary(Path(own))
    if theirs is None or ours is None or theirs == ours:
        return
    token = min(each for each in ours.keys() | theirs.keys() if ours.get(each) != theirs.get(each))
    look.problem(
        key,
        f"the {role} has other tokens than the model: {token!r} is {theirs.get(token)} there and"
        f" {ours.get(token)} here",
        "choose one of the model's family, or stage: distillation, which learns from texts",
    )


def _compare_images(look: Examination, key: Key, role: str, name: str, own: str) -> None:
    """Look whether two models cut images into the same tokens, where both are in directories."""
    theirs, ours = _image_sizes(Path(name)), _image_sizes(Path(own))
    known = theirs.keys() & ours.keys()
    for each in [name for name in _IMAGE_SIZES if name in known and theirs[name] != ours[name]][:1]:
        look.problem(
            key,
            f"the {role} cuts images otherwise than the model: its {each} is {theirs[each]}, the model's"
            f" {ours[each]}",
            "choose one of the model's family, or stage: distillation, which learns from texts",
        )


def _image_sizes(checkpoint: Path) -> dict[str, object]:
    """Read how a checkpoint's directory says that images are cut; nothing if it cannot be read."""
    try:
        folder = Path(base_model(checkpoint))
        told = json.loads((folder / _PROCESSORS[0]).read_text(encoding="utf-8"))
        return {name: told[name] for name in _IMAGE_SIZES if name in told}
    except (OSError, ValueError, TypeError):
        return {}


def _vocabulary(checkpoint: Path) -> dict[str, int] | None:
    """Read the tokens of a checkpoint's directory, by their texts; None if they cannot be read."""
    try:
        told = json.loads((Path(base_model(checkpoint)) / "tokenizer.json").read_text(encoding="utf-8"))
        added = {each["content"]: each["id"] for each in told["added_tokens"]}
        return dict(told["model"]["vocab"]) | added
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _compare(look: Examination, key: Key, length: int, model: str, limit: int | None) -> None:
    if limit is not None and length > limit and not os.environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN"):
        reason = f"{length:,} tokens are more than {model} can take ({limit:,}, max_position_embeddings)"
        look.problem(key, reason, f"write at most {limit}")


def checkpoint_faults(checkpoint: str) -> list[str]:
    """Return what the directory of a checkpoint lacks; nothing of a model that is on the hub."""
    return list(_faults(Path(checkpoint))) if Path(checkpoint).is_dir() else []


def _examine_model(look: Examination, key: Key, role: str, name: str) -> None:
    """Look at a directory, or note that a model is fetched."""
    if not Path(name).is_dir():
        look.note(f"{role}: {name} is not on this machine; it is fetched from the hub at the start")
    for reason in checkpoint_faults(name):
        look.problem(key, f"{name} {reason}", "fetch or export the checkpoint again")


def _rollouts(config: RunConfig) -> Iterator[tuple[Key, RolloutConfig]]:
    """Yield how the run's own model generates, with the paths of the sections that say so."""
    for index, stage in enumerate(config.stages):
        if stage.episodes is not None:
            yield ("stages", index, "rollout"), stage.episodes
    shared = any(stage.episodes is config.evaluation_rollout for stage in config.stages)
    if config.evaluation is not None and not shared:  # also where nobody wrote it, and its defaults hold
        yield ("evaluation", "rollout"), config.evaluation_rollout


def _longest(config: dict) -> int | None:
    """Return the most tokens that an engine gives a model; None if it cannot be told from `config.json`."""
    text = config.get("text_config", config)
    if not isinstance(text, dict) or any("factor" in str(text.get(key)) for key in _SCALINGS):
        return None
    limit = text.get("max_position_embeddings")
    return limit if isinstance(limit, int) else None


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
