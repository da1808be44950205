"""Low-rank adapters: add them to a model, recognise them in a checkpoint, merge them into the weights."""

import json
import math
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import peft
import torch
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoConfig, AutoProcessor, PreTrainedModel

from posttrain.config.lora import LoraConfig
from posttrain.config.lora_targets import Part, TargetError, chosen_layers, kinds_of, part_of
from posttrain.models.load import auto_model, sees_images, write_experts_as_published
from posttrain.run.record import AdaptersRecord

ADAPTER_CONFIG = "adapter_config.json"
#: The part of a Qwen-VL model whose linear layers get adapters, unless a regular expression names others.
LANGUAGE_MODEL = "language_model"
#: The same part of a text model; like the other it does not contain the head.
LAYERS = "layers"


#: Numbers of blocks in the names of layers.
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


class LoraError(ValueError):
    """Adapters cannot be made or read as asked."""


def lora_config(model: PreTrainedModel, settings: LoraConfig) -> peft.LoraConfig:
    """Translate our settings into PEFT's, and check the target modules.

    Raises:
        LoraError: If a target module is of a part that stays as it is, or is not in the model.
    """
    linear = linear_layers(model)
    try:
        found = chosen_layers(linear, settings.target_modules, frozen_parts(model))
    except TargetError as error:
        raise LoraError(f"lora.target_modules: {error}") from error
    return peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=_expression(model, linear, found),
    )


def linear_layers(model: nn.Module) -> list[str]:
    """Name the linear layers of a model; without the head where its name does not say that it is one."""
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and (module is not head or part_of(name) == "head")
    ]


def frozen_parts(model: nn.Module) -> set[Part]:
    """Tell which parts of the vision side have no parameter that is trained."""
    trained = {part_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    parts: tuple[Part, ...] = ("vision tower", "merger")
    return {part for part in parts if part not in trained}


def adapted_layers(model: PeftModel) -> AdaptersRecord:
    """Describe what of a model is adapted."""
    layers: dict[str, dict[str, int]] = {}
    names = [
        name.removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    ]
    for part in dict.fromkeys(map(part_of, names)):
        layers[part] = dict(sorted(kinds_of(name for name in names if part_of(name) == part).items()))
    return AdaptersRecord(layers, sum(p.numel() for p in model.parameters() if p.requires_grad))


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


def add_frozen_adapter(model: PeftModel, name: str, adapter: Path) -> None:
    """Load another adapter beside those that are trained; it computes where `only_adapter` says so.

    Args:
        model: The model, before it is sharded.
        name: What to call it.
        adapter: Directory of an adapter for the same base.
    """
    model.load_adapter(str(adapter), name, is_trainable=False, torch_device="cpu")
    for key, parameter in model.named_parameters():
        if f".{name}." in key:
            parameter.requires_grad_(False)
            parameter.data = parameter.data.to(model.config.dtype)  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def only_adapter(model: nn.Module, name: str) -> Iterator[None]:
    """Let a model compute with one of its adapters and no other, within this context.

    PEFT's own switch also changes which parameters are trained, of which FSDP2 has taken note.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    before = [layer._active_adapter for layer in layers]
    for layer in layers:
        layer._active_adapter = [name]
    try:
        yield
    finally:
        for layer, active in zip(layers, before, strict=True):
            layer._active_adapter = active


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


def base_named_by(adapter: Path) -> str:
    """Read which model a checkpoint's adapters belong to: a directory, or a Hugging Face id.

    Raises:
        LoraError: If the adapters' configuration cannot be read.
    """
    path = adapter / ADAPTER_CONFIG
    try:
        return json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError) as error:
        raise LoraError(f"{path}: the name of the base model cannot be read ({error!r})") from error


def base_of(adapter: Path) -> str:
    """Return what `base_named_by` reads, if it is there.

    Raises:
        LoraError: If the adapters' configuration cannot be read, or names a directory that is not there.
    """
    base = base_named_by(adapter)
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise LoraError(
            f"{adapter / ADAPTER_CONFIG}: base_model_name_or_path is {base}, which is not there; if the run"
            " was moved, write the directory's new path"
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


def _expression(model: PreTrainedModel, linear: Collection[str], names: Collection[str]) -> str:
    """Make a regular expression that finds just these layers.

    PEFT reads lists by the ends of names, which other parts of the model may share. Whole kinds of the
    language model's layers are found wherever it lies, as other versions of transformers wrap it otherwise.
    """
    around = LANGUAGE_MODEL if sees_images(model.config) else LAYERS
    loose = rf"(.*\.)?{around}\..*\.({'|'.join(sorted(kinds_of(names)))})"
    if {name for name in linear if re.fullmatch(loose, name)} == set(names):
        return loose
    shapes: dict[str, list[str]] = {}
    for name in names:
        shapes.setdefault(_NUMBER.sub("#", name), []).append(name)
    parts = []
    for shape, same in sorted(shapes.items()):
        numbers = [tuple(_NUMBER.findall(name)) for name in same]
        columns = [dict.fromkeys(column) for column in zip(*numbers, strict=True)]
        if len(same) < math.prod(len(column) for column in columns):
            parts += map(re.escape, same)
            continue
        groups = [f"({'|'.join(column)})" for column in columns]
        texts = map(re.escape, shape.split("#"))
        parts.append("".join(text + group for text, group in zip(texts, [*groups, ""], strict=True)))
    return "|".join(parts)
