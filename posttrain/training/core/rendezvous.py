"""Where the ranks of a process group meet: a store that the first of them opens at its node's own address."""

from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from posttrain.run.node import listen, node_address, use_interface_of
from posttrain.training.core.distributed import process_group_backend


@dataclass(frozen=True)
class Rendezvous:
    """The place of a store.

    Attributes:
        address: Of the node that holds it.
        port: Its port there.
    """

    address: str
    port: int


def open_store(timeout: timedelta) -> tuple[TCPStore, Rendezvous]:
    """Open a store at this node's address and no other; it lives as long as it is kept.

    Args:
        timeout: How long a key is waited for.

    Raises:
        NodeError: If the address that Ray has for this node is none of its own.
    """
    address = node_address()
    listener = listen(address)
    place = Rendezvous(address, listener.getsockname()[1])
    store = TCPStore(
        *(place.address, place.port, None, True),
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    return store, place


def join_group(
    place: Rendezvous, rank: int, ranks: int, *, use_gpu: bool, timeout: timedelta, own: TCPStore | None
) -> None:
    """Make this process a rank of the group that meets at a place; returns once all ranks are there.

    Args:
        place: Where the store is.
        rank: This process's.
        ranks: Their number.
        use_gpu: Whether tensors on GPUs are reduced as well.
        timeout: How long a rank is waited for, and a collective.
        own: The store, on the rank that opened it.

    Raises:
        NodeError: If this node has no interface with the address that Ray knows it by.
        DistStoreError: If the store cannot be reached in time.
    """
    use_interface_of(node_address())
    store = own or TCPStore(place.address, place.port, None, False, timeout=timeout, wait_for_workers=False)
    dist.init_process_group(
        process_group_backend(use_gpu), store=store, rank=rank, world_size=ranks, timeout=timeout
    )
