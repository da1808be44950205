"""The layers that get adapters: do the names that a stage gives lead to layers that are trained?

They are compared with the names of the weights in the model's directory; of a model that is not here yet,
lists are compared with the names that all Qwen-VL models have.
"""

import json
import re
from pathlib import Path

from posttrain.config.lora import LoraConfig
from posttrain.config.lora_targets import Part, TargetError, chosen_layers
from posttrain.config.model import ModelConfig, base_model, infer_family
from posttrain.preflight.findings import Examination

#: Longest header of a file of weights that is read.
_MAX_HEADER = 64 << 20
_EMBEDDING = re.compile(r"embed|wte|wpe")
#: Published checkpoints have the names of older classes.
_OLD_NAMES = (
    (re.compile(r"^visual\."), "model.visual."),
    (re.compile(r"^model\.layers\."), "model.language_model.layers."),
)
_QWEN = [
    f"model.language_model.layers.0.{name}_proj"
    for name in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")
]


def examine_adapters(look: Examination) -> None:
    """Look whether every stage's `lora.target_modules` finds layers, and none that stays as it is."""
    model = look.config.model
    if model.name_or_path is None:
        return
    base = Path(base_model(model.name_or_path))
    sees_images = (model.family or infer_family(model.name_or_path)) != "text"
    linear = linear_weights(base, sees_images)
    frozen = frozen_by(model)
    for index, stage in enumerate(look.config.stages):
        lora: LoraConfig | None = getattr(stage, "lora", None)  # stages that train nothing have none
        targets = None if lora is None else lora.target_modules
        if targets is None or not (linear or (sees_images and isinstance(targets, list))):
            continue
        try:
            chosen_layers(linear or _QWEN, targets, frozen)
        except TargetError as error:
            look.problem(("stages", index, "lora", "target_modules"), str(error))


def frozen_by(model: ModelConfig) -> set[Part]:
    """Return the parts of the vision side that a run's settings keep as they are."""
    frozen: dict[Part, bool] = {"vision tower": model.freeze_vision_tower, "merger": model.freeze_merger}
    return {part for part, kept in frozen.items() if kept}


def linear_weights(checkpoint: Path, sees_images: bool) -> list[str]:
    """Name the linear layers of a checkpoint by the headers of its files; none if they cannot be read.

    Args:
        checkpoint: A directory.
        sees_images: Whether it is a Qwen-VL model.
    """
    names: list[str] = []
    for file in sorted(checkpoint.glob("*.safetensors")) if checkpoint.is_dir() else ():
        try:
            with file.open("rb") as opened:
                length = int.from_bytes(opened.read(8), "little")
                header = json.loads(opened.read(length)) if length <= _MAX_HEADER else {}
            weights = {name: told["shape"] for name, told in header.items() if name.endswith(".weight")}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return []
        names += [name.removesuffix(".weight") for name, shape in weights.items() if len(shape) == 2]
    layers = [name for name in names if not _EMBEDDING.search(name.rpartition(".")[2])]
    for old, new in _OLD_NAMES if sees_images else ():
        layers = [old.sub(new, name) for name in layers]
    return layers
