"""What training writes: weights for everybody, and the state that only resuming needs.

Weights are written once, in the type that engines read. The state is torch's distributed checkpoint in the
form of safetensors: each rank writes its part, any number of ranks can go on from it, and nothing in it is
executed.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from posttrain.models.load import loaded_type
from posttrain.training.core.distributed import patient_group, rank
from posttrain.training.core.optimizers import MuonWithAdamW
from posttrain.training.core.sharding import reshard, zeros_beside

#: Where a checkpoint keeps the state of its training.
STATE = "state"
#: The part of the state that is no tensor.
_FIGURES = f"{STATE}/trainer.json"
#: The name of a parameter's float32 values among the tensors of the state.
_MASTER = "master"

Figures = Mapping[str, int]


class StateError(ValueError):
    """The state of a checkpoint does not belong to the model that is trained, or to its optimiser."""


def write_weights(model: PreTrainedModel | PeftModel, directory: Path) -> None:
    """Write a model's weights in the type it was loaded in, or its adapters as they are trained.

    Every rank calls this, and rank 0 writes.

    Args:
        model: A model that `core.sharding.shard` has wrapped.
        directory: Where to write; created if missing.
    """
    if isinstance(model, PeftModel):
        adapters = dict(_gathered(model, torch.float32, only_trained=True))
        if rank() == 0:
            model.save_pretrained(str(directory), selected_adapters=["default"], state_dict=adapters)
        return
    dtype = loaded_type(model)
    weights = dict(_gathered(model, dtype, only_trained=False))
    if rank() == 0:
        try:
            model.save_pretrained(directory, state_dict=weights)
        finally:
            model.config.dtype = dtype  # transformers has set, and written, the masters'
        model.config.save_pretrained(directory)


def _gathered(model: nn.Module, dtype: torch.dtype, only_trained: bool) -> Iterator[tuple[str, Tensor]]:
    """Gather a model's tensors one by one, in a type; rank 0 gets them on the CPU, the others nothing."""
    found: dict[int, Tensor] = {}  # tied weights are gathered once, and stay tied
    for name, tensor in model.state_dict(keep_vars=True).items():
        if only_trained and not tensor.requires_grad:
            continue
        if id(tensor) not in found:
            cast = tensor.detach().to(dtype) if tensor.is_floating_point() else tensor.detach()
            whole = cast.full_tensor() if isinstance(cast, DTensor) else cast
            found[id(tensor)] = whole.cpu() if rank() == 0 else torch.empty(0)
        yield name, found[id(tensor)]


def save_state(directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer, figures: Figures) -> None:
    """Write the state of training into a checkpoint's directory; every rank calls this and writes its part.

    Args:
        directory: The checkpoint's directory.
        model: The model.
        optimizer: Its optimiser.
        figures: Whatever else resuming needs; rank 0's is kept.
    """
    reshard(model)
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, float] = {}
    written = torch.float32 if isinstance(model, PeftModel) else loaded_type(model)
    states = _states(optimizer)
    for name, parameter in _trained(model):
        if parameter.dtype != written:  # `write_weights` does not write it to its last digit
            tensors[f"{name}.{_MASTER}"] = parameter.detach()
        for key, value in sorted(states[parameter].items()):  # in one order, whether resumed or not
            if value.ndim:
                tensors[f"{name}.{key}"] = value
            else:
                numbers[f"{name}.{key}"] = value.item()
    (directory / STATE).mkdir(parents=True, exist_ok=True)
    if tensors:
        writer = HuggingFaceStorageWriter(str(directory / STATE), save_distributed=True)
        try:
            save(tensors, storage_writer=writer, process_group=patient_group())
        except CheckpointException as error:  # it holds what each rank raised
            cause, _ = next(iter(error.failures.values()))
            raise cause from None
    if rank() == 0:
        rest = {"optimizer": type(optimizer).__name__, "numbers": numbers, "figures": figures}
        (directory / _FIGURES).write_text(json.dumps(rest))


def load_state(directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Figures:
    """Restore masters and optimiser from what `save_state` wrote; every rank reads its part of it.

    Args:
        directory: The checkpoint's directory.
        model: The model, on any number of ranks.
        optimizer: Its optimiser, new.

    Returns:
        The figures that were saved.

    Raises:
        StateError: If the state is that of other parameters, or of another optimiser.
    """
    saved = json.loads((directory / _FIGURES).read_text())
    if saved["optimizer"] != type(optimizer).__name__:
        raise StateError(
            f"{directory / STATE} holds the state of {saved['optimizer']}, not of {type(optimizer).__name__}:"
            " set `optimizer` to what the stage began with"
        )
    parameters, states = dict(_trained(model)), _states(optimizer)
    reader = HuggingFaceStorageReader(str(directory / STATE))
    tensors: dict[str, Tensor] = {}
    for key, metadata in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(metadata, TensorStorageMetadata)
        name, _, slot = key.rpartition(".")
        parameter = parameters.get(name)
        if parameter is None:
            raise StateError(
                f"{directory / STATE} holds the state of {name}, which this stage does not train"
            )
        if slot == _MASTER:
            tensors[key] = parameter.detach()  # shares the parameter's memory, so that it is read into it
        else:
            tensors[key] = zeros_beside(parameter, metadata.size, metadata.properties.dtype)
            states[parameter][slot] = tensors[key]
    if tensors:
        load(tensors, storage_reader=reader, process_group=patient_group())
    fused = any(group.get("fused") for group in optimizer.param_groups)
    for key, number in saved["numbers"].items():
        name, _, slot = key.rpartition(".")
        # A fused step counts beside the parameters, any other on the CPU.
        device = parameters[name].device if fused else None
        states[parameters[name]][slot] = torch.tensor(number, device=device)
    return saved["figures"]


def _states(optimizer: torch.optim.Optimizer) -> dict[Tensor, dict[str, Tensor]]:
    """Return the state of each parameter, which may still be empty, by the parameter."""
    parts = optimizer.parts if isinstance(optimizer, MuonWithAdamW) else (optimizer,)
    groups = [(part, group) for part in parts for group in part.param_groups]
    return {parameter: part.state[parameter] for part, group in groups for parameter in group["params"]}


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
