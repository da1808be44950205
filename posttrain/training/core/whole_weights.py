"""A model's weights one by one, whole, under the names that its checkpoints have: what engines are sent.

Nothing holds a second copy of the model: a tensor exists in whole only while it is on its way.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from peft.utils.save_and_load import get_peft_model_state_dict
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from posttrain.models.load import loaded_type
from posttrain.training.core.sharding import reshard

#: What PEFT puts before the names of a model's parameters, and after those of the layers that it wraps.
_WRAPPED = "base_model.model."
_INSIDE = ".base_layer"
_ADAPTER = "default"


@dataclass(frozen=True)
class WeightInfo:
    """What is known of a tensor before it is sent.

    Attributes:
        name: Its name in checkpoints.
        dtype: Its type.
        shape: Its whole shape.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class WholeWeights:
    """The weights of a model, adapters merged into them, in the type that engines compute in.

    Tied weights come once, as in checkpoints. Buffers do not come, since no training changes them.

    Args:
        model: A model that `core.sharding.shard` has wrapped.

    Example:
        weights = WholeWeights(model)
        manifest = weights.described()
        for name, tensor in weights:  # on every rank
            ...
    """

    def __init__(self, model: PreTrainedModel | PeftModel) -> None:
        self._model = model
        inner = model.get_base_model() if isinstance(model, PeftModel) else model
        assert isinstance(inner, PreTrainedModel)
        self._inner = inner
        self._dtype = loaded_type(inner)

    def described(self) -> list[WeightInfo]:
        """Describe what iteration yields, in its order; this gathers nothing."""
        return [
            WeightInfo(name, tensor.dtype, tuple(tensor.shape))
            for layer in self._layers()
            for name, tensor in self._published({name: self._outline(at) for name, at in layer})
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Gather the weights layer by layer, and yield each whole, where the model computes.

        Gathering is a collective: every rank iterates to the end, in this order.
        """
        reshard(self._model)
        for layer in self._layers():
            with torch.no_grad():
                whole = {name: self._whole(at) for name, at in layer}
            yield from self._published(whole)

    def _published(self, tensors: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
        """Give tensors the names and layouts of published checkpoints."""
        return list(revert_weight_conversion(self._inner, tensors).items())

    def _layers(self) -> Iterator[list[tuple[str, "_Place"]]]:
        """List the parameters by the layer that they are in, as names in the model and places."""
        before, layer = "", list[tuple[str, _Place]]()
        for at in self._places():
            name = at.name.removeprefix(_WRAPPED).replace(_INSIDE, "")
            if layer and _stack(name) != before:
                yield layer
                layer = []
            before = _stack(name)
            layer.append((name, at))
        yield layer

    def _places(self) -> Iterator["_Place"]:
        """Find every parameter that is no part of an adapter; tied ones once."""
        modules = dict(self._model.named_modules())
        for name, parameter in self._model.named_parameters():
            owner, _, _ = name.rpartition(".")
            around = modules.get(owner.removesuffix(_INSIDE))
            adapted = around if owner.endswith(_INSIDE) and isinstance(around, LoraLayer) else None
            if ".lora_" not in name:
                is_weight = name.endswith(".weight")
                yield _Place(name, parameter, modules[owner], adapted if is_weight else None)

    def _outline(self, at: "_Place") -> Tensor:
        """Make a tensor of the shape and type of a whole one, without memory."""
        shape = at.quantized_shape or at.parameter.shape
        dtype = self._dtype if at.parameter.is_floating_point() or at.quantized_shape else at.parameter.dtype
        return torch.empty(shape, dtype=dtype, device="meta")

    def _whole(self, at: "_Place") -> Tensor:
        """Gather a parameter, and merge the adapter of its layer into it."""
        tensor = (dequantize_module_weight(at.owner) if at.quantized_shape else at.parameter).detach()
        if at.adapted is None:
            # Rounded before it is gathered: half of the bytes of masters need to travel.
            return _gathered(tensor.to(self._dtype) if tensor.is_floating_point() else tensor)
        first, second = (
            _gathered(getattr(at.adapted, part)[_ADAPTER].weight.detach()).float()
            for part in ("lora_A", "lora_B")
        )
        change = at.adapted.scaling[_ADAPTER] * (second @ first)
        return (_gathered(tensor).float() + change).to(self._dtype)


@dataclass(frozen=True)
class _Place:
    """A parameter, and where it is.

    Attributes:
        name: Its name in the wrapped model.
        parameter: The parameter.
        owner: The module that has it.
        adapted: The layer that adds an adapter to it, if one does.
    """

    name: str
    parameter: nn.Parameter
    owner: nn.Module
    adapted: LoraLayer | None

    @property
    def quantized_shape(self) -> tuple[int, int] | None:
        """The shape of a weight that bitsandbytes holds; None of any other."""
        if type(self.parameter).__name__ not in ("Params4bit", "Int8Params"):
            return None
        assert isinstance(self.owner, nn.Linear)
        return self.owner.out_features, self.owner.in_features


def adapter_tensors(model: PeftModel, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Gather the adapters of a model, under the names that PEFT's files have.

    Args:
        model: A model that `core.sharding.shard` has wrapped; every rank calls this.
        dtype: The type of the tensors.

    Returns:
        The tensors, on the CPU.
    """
    reshard(model)
    trained = {
        name: _gathered(parameter.detach()).to("cpu", dtype)
        for name, parameter in model.named_parameters()
        if ".lora_" in name
    }
    return get_peft_model_state_dict(model, state_dict=trained)


def _gathered(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _stack(name: str) -> str:
    """Return a parameter's name up to the first number in it: the layer that it belongs to."""
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1]) if numbers else ""
