"""Sums, flags and waiting over the ranks; on one rank they cost nothing."""

from collections.abc import Iterable
from datetime import timedelta
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor, nn

#: Longer than any disk takes.
PATIENCE = timedelta(days=7)


def process_group_backend(use_gpu: bool) -> str:
    """Return the backends of the collectives: NCCL for tensors on GPUs, gloo for those on CPUs."""
    return "cpu:gloo,cuda:nccl" if use_gpu else "gloo"


def rank() -> int:
    """Return this process's rank; 0 if there is no process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes; 1 if there is no process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def training_device(use_gpu: bool) -> torch.device:
    """Return where this process trains: the GPU that it was given, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if use_gpu else torch.device("cpu")


def ensure_process_group(device: torch.device) -> None:
    """Make this process a group of its own if it is in none, because FSDP2 wants a group."""
    if not dist.is_initialized():
        backend = process_group_backend(device.type == "cuda")
        store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)


def patient_group() -> dist.ProcessGroup | None:
    """Return a group of all ranks in which they wait for each other without a deadline; None on one rank.

    Ranks wait here while another writes to a slow disk; Ray notices those that have died. Every rank must
    call this for the first time at the same point.
    """
    return _patient_group(dist.group.WORLD) if world_size() > 1 else None


@cache
def _patient_group(_beside: dist.ProcessGroup) -> dist.ProcessGroup:
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    assert isinstance(group, dist.ProcessGroup)
    return group


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Add up figures over all ranks; the result is on the CPU, by which they travel.

    A rank without samples has its figure from nowhere, another from its GPU; ranks whose tensors lie on
    different devices would wait for each other in different groups.
    """
    return _reduced(tensor, dist.ReduceOp.SUM)


def max_over_ranks(tensor: Tensor) -> Tensor:
    """Find the largest of each figure over all ranks; like `sum_over_ranks` otherwise."""
    return _reduced(tensor, dist.ReduceOp.MAX)


def _reduced(tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    figures = tensor.detach().cpu().clone()
    if world_size() > 1:
        dist.all_reduce(figures, op=operation)
    return figures


def barrier() -> None:
    """Wait until every rank has called this, however long the others write to a disk."""
    if world_size() > 1:
        dist.all_reduce(torch.zeros(1), group=patient_group())


def any_over_ranks(*flags: bool) -> list[bool]:
    """Return for each flag whether it is set on any rank."""
    return [count > 0 for count in sum_over_ranks(torch.tensor(flags, dtype=torch.float32)).tolist()]


def sum_gradients(modules: Iterable[nn.Module]) -> None:
    """Add up every gradient of modules that are replicas without FSDP2, in one collective.

    A parameter without a gradient on this rank counts as zero.
    """
    if world_size() == 1:
        return
    trained = [each for module in modules for each in module.parameters() if each.requires_grad]
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in trained]
    sums = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(sums)
    for parameter, total in zip(trained, sums.split([each.numel() for each in trained]), strict=True):
        parameter.grad = total.view_as(parameter)
