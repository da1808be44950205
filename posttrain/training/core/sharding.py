"""How every stage holds its weights: float32 masters in FSDP2, and a model that computes in its own type.

Most updates are smaller than a rounding unit of bfloat16: at a learning rate of 1e-6 more than 99 % of them
are lost where weights and moments are kept in it. So whatever is trained is held, reduced and updated in
float32, and computed with in the type that the model was loaded in, which is the engines' as well. Only an
optimiser that rounds at random (`core.narrow_adamw`) loses nothing, and may do without the masters.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor import zeros as distributed_zeros
from transformers import PreTrainedModel

from posttrain.models.load import in_vision_tower, loaded_type
from posttrain.training.core.distributed import ensure_process_group, world_size

Sharding = Literal["none", "fsdp2"]


def shard(
    model: PreTrainedModel | PeftModel, sharding: Sharding, device: torch.device, masters: bool = True
) -> None:
    """Wrap a model by FSDP2, in place; on one rank as well, so that one policy holds everywhere.

    Trained parameters become float32 masters. They are cast to the type that the model was loaded in where a
    layer runs, and gradients are added up over micro-batches and ranks in float32. With `fsdp2` each rank
    holds its part of them, and of frozen parameters except the vision tower's; with `none` each holds all.
    Frozen parameters keep their type.

    Every rank issues the same collectives, whatever its samples are: a frozen vision tower, which runs only
    where there are images, takes part in none, and parameters that a rank has not used are reduced as zeros.

    Args:
        model: A model from `load_policy`, or adapters around it, with the same weights on every rank.
        sharding: Whether each rank holds all parameters, or its part.
        device: Where the parameters are to be.
        masters: Whether trained parameters become float32; without they keep their type, and gradients are
            rounded to it once they are added up.
    """
    ensure_process_group(device)
    mesh = _mesh(sharding, device)
    compute = loaded_type(model)
    wide = torch.promote_types(compute, torch.float32)
    policy = MixedPrecisionPolicy(
        param_dtype=compute,
        reduce_dtype=wide,
        output_dtype=None,
        cast_forward_inputs=False,
    )
    whole = set(_held_by_every_rank(model, sharding))
    for unit in _units(model):
        if whole.issuperset(unit.parameters()):
            continue
        for parameter in unit.parameters():
            if parameter.requires_grad and masters:
                parameter.data = parameter.data.to(wide)
        fully_shard(unit, mesh=mesh, mp_policy=policy, ignored_params=whole)
    for tensor in (*whole, *model.buffers()):
        tensor.data = tensor.data.to(device)
    for module in _wrapped(model):
        # Losses are sums with global normalisers, so gradients are added up; FSDP2's default is their mean.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sums
        module.set_reduce_scatter_unused_params(True, recurse=False)


def reduce_over_replicas(model: nn.Module, now: bool) -> None:
    """Tell a model from `shard` whether the next backward pass adds up the gradients of replicas.

    Before the last micro-batch of a step they need not be: each rank adds up its own.
    """
    for module in _wrapped(model):
        module.set_requires_all_reduce(now, recurse=False)


def zeros_beside(parameter: Tensor, size: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Make zeros whose rows lie where a parameter's do: over the same ranks, on the same device."""
    if not isinstance(parameter, DTensor):
        return torch.zeros(size, dtype=dtype, device=parameter.device)
    return distributed_zeros(
        size, dtype=dtype, device_mesh=parameter.device_mesh, placements=parameter.placements
    )


def reshard(model: nn.Module) -> None:
    """Give a model its masters back as parameters, of which it lacks some after a forward pass alone."""
    for module in _wrapped(model):
        module.reshard()


def _wrapped(model: nn.Module) -> Iterator[FSDPModule]:
    return (module for module in model.modules() if isinstance(module, FSDPModule))


def _mesh(sharding: Sharding, device: torch.device) -> DeviceMesh:
    """Make the mesh of replicas and shards."""
    shape = (1, world_size()) if sharding == "fsdp2" else (world_size(), 1)
    return init_device_mesh(device.type, shape, mesh_dim_names=("replicas", "shards"))


def _held_by_every_rank(model: nn.Module, sharding: Sharding) -> Iterator[nn.Parameter]:
    """Yield the frozen parameters that stay outside of FSDP2."""
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and (sharding == "none" or in_vision_tower(name)):
            yield parameter


def _units(model: nn.Module) -> list[nn.Module]:
    """List the modules whose parameters are gathered together: each layer, then the model with the rest."""
    layers = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in layers] + [model]
