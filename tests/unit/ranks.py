"""Processes for what more ranks change, and process groups of this process alone."""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.multiprocessing.spawn import start_processes

# Ranks are forked from a process that has loaded these and done nothing else: loading takes them seconds, and
# one that is forked from a session that has run an engine deadlocks in its first operation.
multiprocessing.set_forkserver_preload(
    [
        "posttrain.training.supervised.dpo",
        "posttrain.training.supervised.sft",
        "posttrain.training.on_policy.learner",
        "tests.unit.frozen",
    ]
)


def on_two_ranks(function: Callable[..., None], *arguments: Any) -> None:
    """Call `function(rank, *arguments)` in two processes; see `on_ranks`."""
    on_ranks(2, function, *arguments)


def on_ranks(count: int, function: Callable[..., None], *arguments: Any) -> None:
    """Call `function(rank, *arguments)` in some processes, and wait.

    Args:
        count: The number of processes.
        function: Of a module; it initialises the process group.
        arguments: What pickles.

    Raises:
        ProcessRaisedException: If a rank raised; the others are stopped.
    """
    start_processes(function, arguments, nprocs=count, start_method="forkserver")


@contextmanager
def group_of_this_process(backend: str, ranks: int = 1) -> Iterator[None]:
    """Be rank 0 of a process group, and of none afterwards; tests before may have left one."""
    if dist.is_initialized():
        dist.destroy_process_group()
    dist.init_process_group(backend, store=HashStore(), rank=0, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()
