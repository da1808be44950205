"""Data parallelism by plain collectives: the same sums on one rank or on many."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn


def process_group_backend(use_gpu: bool) -> str:
    """Return the backends of the collectives: NCCL for tensors on GPUs, gloo for those on CPUs."""
    return "cpu:gloo,cuda:nccl" if use_gpu else "gloo"


def rank() -> int:
    """Return this process's rank; 0 if there is no process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes; 1 if there is no process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Add up a tensor over all ranks, in place; return it."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def barrier() -> None:
    """Wait until every rank has called this."""
    sum_over_ranks(torch.zeros(1))


def max_over_ranks(tensor: Tensor) -> Tensor:
    """Replace each value of a tensor by the largest over all ranks, in place; return the tensor."""
    if world_size() > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor


def any_over_ranks(*flags: bool) -> list[bool]:
    """Return for each flag whether it is set on any rank."""
    return [count > 0 for count in sum_over_ranks(torch.tensor(flags, dtype=torch.float32)).tolist()]


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up every gradient over the ranks, in one collective.

    Losses are sums with global normalisers, so the sum over the ranks is the gradient of the whole batch. A
    parameter without a gradient on this rank counts as zero.
    """
    if world_size() == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([parameter.grad.flatten() for parameter in trained if parameter.grad is not None])
    dist.all_reduce(flat)
    offset = 0
    for parameter in trained:
        size = parameter.numel()
        assert parameter.grad is not None
        parameter.grad.copy_(flat[offset : offset + size].view_as(parameter.grad))
        offset += size
