"""Two processes for what a second rank changes."""

import multiprocessing
from collections.abc import Callable
from typing import Any

from torch.multiprocessing.spawn import start_processes

# Ranks are forked from a process that has loaded these and done nothing else: loading takes them seconds, and
# one that is forked from a session that has run an engine deadlocks in its first operation.
multiprocessing.set_forkserver_preload(
    ["posttrain.training.supervised.dpo", "posttrain.training.supervised.sft"]
)


def on_two_ranks(function: Callable[..., None], *arguments: Any) -> None:
    """Call `function(rank, *arguments)` in two processes, and wait.

    Args:
        function: Of a module; it initialises the process group.
        arguments: What pickles.

    Raises:
        ProcessRaisedException: If a rank raised; the other is stopped.
    """
    start_processes(function, arguments, nprocs=2, start_method="forkserver")
