"""Low-rank adapters: add them to a model, recognise them in a checkpoint, merge them into the weights."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import peft
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoProcessor, PreTrainedModel

from posttrain.config.lora import LoraConfig
from posttrain.models.load import auto_model, sees_images, write_experts_as_published

ADAPTER_CONFIG = "adapter_config.json"
#: The part of a Qwen-VL model whose linear layers get adapters, unless a regular expression names others.
LANGUAGE_MODEL = "language_model"
#: The same part of a text model; like the other it does not contain the head.
LAYERS = "layers"


class LoraError(ValueError):
    """Adapters cannot be made or read as asked."""


def lora_config(model: PreTrainedModel, settings: LoraConfig) -> peft.LoraConfig:
    """Translate our settings into PEFT's, and check the target modules.

    Raises:
        LoraError: If a target module is the head, or is not in the model, which PEFT would ignore silently.
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
    """Add fresh adapters to a model, and freeze everything else.

    The output of the model is the same as before, because the second matrix of each adapter is zero.

    Args:
        model: A model from `load_model`; it is changed in place.
        settings: Rank, scale and target modules.
        seed: Seed of the first matrix of each adapter.

    Raises:
        LoraError: If a target module is the head, or is not in the model.
    """
    torch.manual_seed(seed)
    wrapped = get_peft_model(model, lora_config(model, settings))
    assert isinstance(wrapped, PeftModel)
    return wrapped


@contextmanager
def adapters_off(model: PeftModel) -> Iterator[None]:
    """Let a model compute as if it had no adapters, within this context.

    They stay marked as trained. PEFT marks them as frozen, and FSDP2 notes the types of what is trained in a
    model's first pass, which may be this one.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with model.disable_adapter():
        for parameter in trained:
            parameter.requires_grad_(True)
        yield


def is_adapter(checkpoint: Path | str) -> bool:
    """Tell whether a checkpoint holds adapters, and not a model's weights."""
    return (Path(checkpoint) / ADAPTER_CONFIG).is_file()


def base_of(adapter: Path) -> str:
    """Read which model a checkpoint's adapters belong to: a directory, or a Hugging Face id.

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
    """Load a checkpoint's model in the precision that it is stored in; adapters are merged into their base.

    Args:
        checkpoint: Directory of a model or of adapters, or a Hugging Face id.

    Raises:
        LoraError: If the base model of the adapters cannot be found.
        OSError: If there are no readable safetensors files.
    """
    base = base_of(Path(checkpoint)) if is_adapter(checkpoint) else str(checkpoint)
    config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    model = auto_model(config).from_pretrained(
        base, config=config, dtype="auto", trust_remote_code=False, use_safetensors=True
    )
    if not is_adapter(checkpoint):
        return model
    return PeftModel.from_pretrained(model, str(checkpoint)).merge_and_unload(safe_merge=True)  # pyright: ignore


def write_merged(checkpoint: Path, directory: Path) -> None:
    """Merge a checkpoint's adapters into their base, and write the model with its processor.

    Args:
        checkpoint: Directory of the adapters and the processor.
        directory: Where to write; created if missing.

    Raises:
        LoraError: If the base model cannot be found, or a merged weight is not a finite number.
    """
    try:
        model = load_merged(checkpoint)
    except ValueError as error:
        raise LoraError(f"{checkpoint}: {error}") from error
    write_experts_as_published(model)
    model.save_pretrained(directory)
    AutoProcessor.from_pretrained(str(checkpoint), trust_remote_code=False).save_pretrained(directory)


def _language_model_layers(model: PreTrainedModel, names: list[str] | None) -> str:
    """Make a regular expression for linear layers of the language model.

    Args:
        model: The model.
        names: Last parts of the layers' names, such as `q_proj`; all linear layers if None.

    Raises:
        LoraError: If the language model has no layer of one of these names.
    """
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
