"""How much memory and how many threads pixels may take in a process; decided here alone."""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist

from posttrain.config.host_memory import SHARE_OF_PIXELS
from posttrain.doctor.machine import memory_bytes, usable_cores

#: Variable that tells an engine how many there are; ranks that train have the launcher's LOCAL_WORLD_SIZE.
RANKS_HERE = "POSTTRAIN_RANKS_HERE"
#: Most threads of a process that prepare pixels: decoding keeps up with a GPU by fewer.
MOST_THREADS = 8
#: Part of the pixels that may be prepared before they are asked for; the rest are those used last.
SHARE_AHEAD = 1 / 2


@dataclass(frozen=True)
class PixelLimits:
    """Bounds of a `PixelCache`.

    Attributes:
        max_bytes: Most bytes of pixels that are kept, those prepared ahead among them.
        threads: Threads that prepare pixels ahead; with 0 they are prepared when they are asked for.
    """

    max_bytes: int
    threads: int = 0

    @property
    def bytes_ahead(self) -> int:
        """Most bytes of pixels that are prepared and have not been asked for."""
        return int(self.max_bytes * SHARE_AHEAD)


def pixel_limits() -> PixelLimits:
    """Decide on the limits of this process, as one of the ranks of its machine.

    A model on the CPU computes with torch's threads; only cores that it leaves prepare pixels, so that it is
    not slowed down. A model on a GPU needs one core to be driven.
    """
    ranks = _ranks_here()
    busy = 1 if torch.cuda.is_available() else torch.get_num_threads()
    idle = int(usable_cores() / ranks) - busy
    return PixelLimits(int(memory_bytes() * SHARE_OF_PIXELS / ranks), max(0, min(MOST_THREADS, idle)))


def _ranks_here() -> int:
    """Return how many ranks share this machine: as their launcher tells, or else all that there are."""
    told = os.environ.get(RANKS_HERE, "") or os.environ.get("LOCAL_WORLD_SIZE", "")
    if told.isdecimal():
        return max(1, int(told))
    return dist.get_world_size() if dist.is_initialized() else 1
