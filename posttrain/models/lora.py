"""Low-rank adapters: put onto a model, found in a checkpoint, merged into the weights."""

import json
import re
from pathlib import Path
from typing import Any

import peft
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoProcessor, PreTrainedModel

from posttrain.config.lora import LoraConfig
from posttrain.models.load import auto_model, sees_images, write_experts_as_published

ADAPTER_CONFIG = "adapter_config.json"
#: The part of a Qwen-VL model that is adapted unless a regular expression says otherwise.
LANGUAGE_MODEL = "language_model"
#: The same of a text model, whose head is left out as well.
LAYERS = "layers"


class LoraError(ValueError):
    """Adapters that cannot be made or read as asked."""


def lora_config(model: PreTrainedModel, settings: LoraConfig) -> peft.LoraConfig:
    """Our keys as PEFT's, the modules found in the model and checked.

    Raises:
        LoraError: If a target module is the head, or not in the model: PEFT would pass over it in silence.
    """
    targets = settings.target_modules
    if isinstance(targets, str):
        head = model.get_output_embeddings()
        if any(re.fullmatch(targets, name) for name, module in model.named_modules() if module is head):
            raise LoraError(
                f"lora.target_modules: {targets!r} finds the head, which stays as it is; name less"
            )
    else:
        targets = _language_model_layers(model, targets)
    return peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
    )


def with_lora(model: PreTrainedModel, settings: LoraConfig, seed: int) -> PeftModel:
    """A model with fresh adapters, which change nothing yet; everything else is fixed.

    Args:
        model: As `load_model` returns it; changed in place.
        settings: Rank, scale and places.
        seed: Of the adapters' first halves; the second halves are zero.

    Raises:
        LoraError: As `lora_config`.
    """
    torch.manual_seed(seed)
    wrapped = get_peft_model(model, lora_config(model, settings))
    assert isinstance(wrapped, PeftModel)
    return wrapped


def is_adapter(checkpoint: Path | str) -> bool:
    """Whether a checkpoint's directory holds adapters and not a model's weights."""
    return (Path(checkpoint) / ADAPTER_CONFIG).is_file()


def base_of(adapter: Path) -> str:
    """The model that a checkpoint's adapters belong to: a directory or a Hugging Face id.

    Raises:
        LoraError: If the adapters' configuration cannot be read, or names a directory that is not there.
    """
    path = adapter / ADAPTER_CONFIG
    try:
        base = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError) as error:
        raise LoraError(f"{path}: the name of the base model cannot be read ({error!r})") from error
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise LoraError(
            f"{path}: base_model_name_or_path is {base}, which is not there; if the run was moved, write the"
            " directory's new path"
        )
    return base


def load_merged(checkpoint: Path | str) -> PreTrainedModel:
    """A checkpoint's model in the precision it is stored in; adapters are merged into their base.

    Args:
        checkpoint: Directory of a model or of adapters, or a Hugging Face id.

    Raises:
        LoraError: If adapters' base cannot be found.
        OSError: If there are no readable safetensors.
    """
    base = base_of(Path(checkpoint)) if is_adapter(checkpoint) else str(checkpoint)
    config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    model: Any = auto_model(config).from_pretrained(
        base, config=config, dtype="auto", trust_remote_code=False, use_safetensors=True
    )
    if not is_adapter(checkpoint):
        return model
    return PeftModel.from_pretrained(model, str(checkpoint)).merge_and_unload(safe_merge=True)  # pyright: ignore


def write_merged(checkpoint: Path, directory: Path) -> None:
    """Write the model of a checkpoint with adapters as one that stands alone, with its processor.

    Args:
        checkpoint: Directory of adapters and of the processor.
        directory: Where to write; created where missing.

    Raises:
        LoraError: As `load_merged`, and if a merged weight is not a finite number.
    """
    try:
        model = load_merged(checkpoint)
    except ValueError as error:
        raise LoraError(f"{checkpoint}: {error}") from error
    write_experts_as_published(model)
    model.save_pretrained(directory)
    AutoProcessor.from_pretrained(str(checkpoint), trust_remote_code=False).save_pretrained(directory)


def _language_model_layers(model: PreTrainedModel, names: list[str] | None) -> str:
    """A regular expression for linear layers of the language model, by the last part of their names."""
    parts = [
        (path.split("."), module) for path, module in model.named_modules() if isinstance(module, nn.Linear)
    ]
    adapted = LANGUAGE_MODEL if sees_images(model.config) else LAYERS
    found = {path[-1] for path, _ in parts if adapted in path}
    if missing := sorted(set(names or ()) - found):
        raise LoraError(
            f"lora.target_modules: the language model has no linear layer {missing[0]!r}; it has"
            f" {', '.join(sorted(found))}"
        )
    return rf"(.*\.)?{adapted}\..*\.({'|'.join(sorted(names or found))})"
