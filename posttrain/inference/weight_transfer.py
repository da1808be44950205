"""Weights on their way from the learners to the engines: where both meet, what is sent, and how it is packed.

Learner rank 0 is rank 0 of a group, and the workers of every engine are the others. Tensors travel in an
order that both know, several in a bucket, so that neither side ever holds a second copy of the model. Nothing
here loads vLLM; its side of a transfer is `weight_transfer_engine`.
"""

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from posttrain.plugins import resolve
from posttrain.run.node import listen

Backend = Literal["gloo", "nccl", "shared_gpu"]

#: Bytes of a bucket: enough to keep a wire busy, and little beside a model.
GPU_BUCKET_BYTES = 512 << 20
#: Seconds in which everybody must have joined a group, and in which each bucket must have arrived. An engine
#: first ends its step, which takes longest on a GPU that compiles a kernel for it.
TRANSFER_TIMEOUTS: dict[Backend, float] = {"gloo": 30.0, "nccl": 120.0, "shared_gpu": 120.0}

#: The class that sends by each backend. Those of GPUs need vLLM, which takes seconds to load.
SENDERS = {
    "gloo": "posttrain.inference.weight_transfer_gloo:GlooSender",
    "nccl": "posttrain.inference.weight_transfer_nccl:NcclSender",
    "shared_gpu": "posttrain.inference.weight_transfer_ipc:SharedGpuSender",
}


class TransferError(RuntimeError):
    """A transfer of weights failed; an engine that took part in it holds neither the old nor the new ones."""


@contextmanager
def as_transfer_error() -> Iterator[None]:
    """Raise whatever is raised within this context as a TransferError, with its text."""
    try:
        yield
    except TransferError:
        raise
    except Exception as error:
        raise TransferError(str(error)[:500]) from error


@dataclass(frozen=True)
class TransferGroup:
    """A group of learner rank 0 and the workers of engines.

    Attributes:
        backend: How tensors travel.
        host: Address of rank 0's node, at which all of them meet.
        port: Its port.
        size: Number of ranks.
        bucket_bytes: A bucket is closed as soon as it holds more than this.
        timeout: Seconds that joining and each bucket may take.
        rank: Rank of an engine's first worker.
        key: Name of the group; no two groups have the same.
    """

    backend: Backend
    host: str
    port: int
    size: int
    bucket_bytes: int
    timeout: float
    rank: int = 0
    key: str = ""

    @staticmethod
    def backend_for(use_gpu: bool, shared: bool) -> Backend:
        """Return how tensors travel: between GPUs, within GPUs that are shared, or on CPUs."""
        if not use_gpu:
            return "gloo"
        return "shared_gpu" if shared else "nccl"

    def at(self, rank: int) -> "TransferGroup":
        """Return the group as an engine sees it whose first worker has this rank."""
        return replace(self, rank=rank)

    def init_info(self) -> dict[str, Any]:
        """Return what vLLM's weight transfer is told at the start, in the words of the backend."""
        if self.backend != "nccl":
            return asdict(self)
        return {
            "master_address": self.host,
            "master_port": self.port,
            "rank_offset": self.rank,
            "world_size": self.size,
            "packed": True,
            "packed_buffer_size_bytes": self.bucket_bytes,
        }


@dataclass(frozen=True)
class TensorInfo:
    """Name, type and shape of a tensor, as a checkpoint holds it.

    Attributes:
        name: Its name in a checkpoint.
        dtype: Its type, such as "bfloat16".
        shape: Its shape.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Number of bytes of its values."""
        return torch.Size(self.shape).numel() * getattr(torch, self.dtype).itemsize


@dataclass(frozen=True)
class Manifest:
    """All tensors of a transfer, in the order in which they travel.

    Attributes:
        tensors: The tensors; tied ones are sent once.
        tied: Names in a checkpoint that stand for one of the tensors, and are not sent.
    """

    tensors: tuple[TensorInfo, ...]
    tied: frozenset[str] = frozenset()

    @property
    def num_bytes(self) -> int:
        """Number of bytes of all values."""
        return sum(tensor.num_bytes for tensor in self.tensors)

    def update_info(self) -> dict[str, Any]:
        """Return what vLLM's weight transfer is told before each update."""
        return {
            "names": [tensor.name for tensor in self.tensors],
            "dtype_names": [tensor.dtype for tensor in self.tensors],
            "shapes": [list(tensor.shape) for tensor in self.tensors],
        }

    def differences(self, expected: set[str]) -> list[str]:
        """List the names that an engine expects and does not get, or gets and does not expect."""
        sent = {tensor.name for tensor in self.tensors}
        return sorted((sent ^ expected) - self.tied)


def buckets(tensors: Sequence[TensorInfo], bucket_bytes: int) -> Iterator[list[TensorInfo]]:
    """Divide tensors into buckets, the same on both sides."""
    bucket: list[TensorInfo] = []
    size = 0
    for tensor in tensors:
        bucket.append(tensor)
        size += tensor.num_bytes
        if size > bucket_bytes:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket


def unpacked(buffer: Tensor, bucket: Sequence[TensorInfo]) -> Iterator[tuple[str, Tensor]]:
    """Yield a bucket's tensors with their names; they share the buffer's memory."""
    parts = buffer.split([tensor.num_bytes for tensor in bucket])
    for tensor, part in zip(bucket, parts, strict=True):
        if part.storage_offset() % 8:  # behind a tensor of odd size; a view of wider type needs alignment
            part = part.clone()
        yield tensor.name, part.view(getattr(torch, tensor.dtype)).view(tensor.shape)


def address_towards(host: str) -> str:
    """Return the address of this machine by which it reaches another; no packet is sent."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))
        return probe.getsockname()[0]


class Sender(Protocol):
    """A learner's end of a group: the first rank's, or every rank's on GPUs that engines share."""

    group: TransferGroup

    def join(self) -> None:
        """Wait until every engine has joined.

        Raises:
            TransferError: If one of them does not in time.
        """
        ...

    def send(self, manifest: Manifest, tensors: Iterator[tuple[str, Tensor]]) -> None:
        """Send tensors to all engines.

        Args:
            manifest: What is sent.
            tensors: The tensors, in the manifest's order.

        Raises:
            TransferError: If an engine died or stalled. The group is then of no more use.
        """
        ...

    def close(self) -> None:
        """Leave the group."""
        ...


def open_sender(backend: Backend, host: str, size: int, timeout: float) -> Sender:
    """Open a group at a free port of this node.

    Args:
        backend: How tensors are to travel.
        host: This node's address, as the engines reach it.
        size: Number of ranks, this one included.
        timeout: Seconds that joining and each bucket may take.
    """
    kind = resolve(SENDERS[backend], "posttrain.weight_senders", type)
    return kind(host, size, timeout)


def sender_beside(group: TransferGroup) -> Sender | None:
    """Return the end of a learner's rank that is not the first; None where only the first one sends."""
    if group.backend != "shared_gpu":
        return None
    return resolve(SENDERS[group.backend], "posttrain.weight_senders", type).beside(group)


def listening_store(host: str, timeout: float) -> tuple[TCPStore, int]:
    """Open a store at a free port of this node; return it with its port."""
    listener = listen(host)
    port = listener.getsockname()[1]
    # A store that waits for the others in its constructor would do so before they know its port.
    store = TCPStore(
        *(host, port, None, True),
        timeout=timedelta(seconds=timeout),
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    return store, port


def store_of(group: TransferGroup) -> TCPStore:
    """Connect to the store that rank 0 has opened."""
    limit = timedelta(seconds=group.timeout)
    try:
        return TCPStore(
            *(group.host, group.port, None, False),
            timeout=limit,
            wait_for_workers=False,
        )
    except RuntimeError as error:
        raise TransferError(
            f"no learner waits for engines at {group.host}:{group.port}: {first_line(error)}"
        ) from error


def check_announced(
    manifest: Manifest, tensors: Iterator[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors, if they are those of a manifest.

    Raises:
        TransferError: If they are others.
    """
    for info in manifest.tensors:
        name, tensor = next(tensors, ("nothing", torch.empty(0)))
        found = TensorInfo(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        if found != info:
            raise TransferError(
                f"the learner announced {info.name} as {info.dtype} {info.shape}, and holds {found.name} as"
                f" {found.dtype} {found.shape}"
            )
        yield name, tensor
    if extra := next(tensors, None):
        raise TransferError(f"the learner holds a tensor that it did not announce: {extra[0]}")


def first_line(error: Exception) -> str:
    """Shorten an error of torch's, which lists its own stack."""
    return str(error).partition("\n")[0][:300]
