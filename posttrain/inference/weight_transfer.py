"""Weights on their way from the learners to the engines: where both meet, what is sent, and how it is packed.

Learner rank 0 is rank 0 of a group, and the workers of every engine are the others. Tensors travel in an
order that both know, several in a bucket, so that neither side ever holds a second copy of the model. Nothing
here loads vLLM; its side of a transfer is `weight_transfer_engine`.
"""

import socket
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.distributed import BroadcastOptions, PrefixStore, ProcessGroupGloo, TCPStore, Work  # pyright: ignore[reportPrivateImportUsage]

from posttrain.plugins import resolve
from posttrain.run.node import listen

Backend = Literal["gloo", "nccl"]

#: Bytes of a bucket: enough to keep a wire busy, and little beside a model.
CPU_BUCKET_BYTES, GPU_BUCKET_BYTES = 32 << 20, 512 << 20
#: Seconds in which everybody must have joined a group, and in which each bucket must have arrived.
TRANSFER_TIMEOUT = 30.0

#: The class that sends by each backend. That of GPUs needs vLLM, which takes seconds to load.
SENDERS = {
    "gloo": "posttrain.inference.weight_transfer:GlooSender",
    "nccl": "posttrain.inference.weight_transfer_nccl:NcclSender",
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
        rank: Rank of an engine's first worker.
        key: Name of the group; no two groups have the same.
        timeout: Seconds that joining and each bucket may take.
    """

    backend: Backend
    host: str
    port: int
    size: int
    bucket_bytes: int
    rank: int = 0
    key: str = ""
    timeout: float = TRANSFER_TIMEOUT

    def at(self, rank: int) -> "TransferGroup":
        """Return the group as an engine sees it whose first worker has this rank."""
        return replace(self, rank=rank)

    def init_info(self) -> dict[str, Any]:
        """Return what vLLM's weight transfer is told at the start, in the words of the backend."""
        if self.backend == "gloo":
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
    """Learner rank 0's end of a group."""

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


def open_sender(backend: Backend, host: str, size: int, timeout: float = TRANSFER_TIMEOUT) -> Sender:
    """Open a group at a free port of this node.

    Args:
        backend: How tensors are to travel.
        host: This node's address, as the engines reach it.
        size: Number of ranks, this one included.
        timeout: Seconds that joining and each bucket may take.
    """
    kind = resolve(SENDERS[backend], "posttrain.weight_senders", type)
    return kind(host, size, timeout)


class GlooGroup:
    """A process's place in a group that broadcasts from rank 0 over sockets, on CPUs.

    Args:
        group: The group.
        rank: This process's rank.
        own: The store at which the ranks meet, on rank 0.

    Raises:
        TransferError: If the others do not join in time.
    """

    def __init__(self, group: TransferGroup, rank: int, own: TCPStore | None = None) -> None:
        self._group = group
        self._store = own or _store_of(group)
        gloo: Any = ProcessGroupGloo  # torch's stubs know neither its options nor its collectives
        options = gloo._Options()
        # By default gloo listens at whatever address the host's name stands for, often the loopback's.
        options._devices = [gloo.create_device(hostname=address_towards(group.host), lazy_init=False)]
        options._timeout = timedelta(seconds=group.timeout)
        prefix = PrefixStore(group.key, self._store)
        try:
            self._gloo = gloo(prefix, rank, group.size, options)
        except RuntimeError as error:
            raise TransferError(
                f"not all {group.size} members of the weight transfer met at {group.host}:{group.port}"
                f" within {group.timeout:g} s: {_first_line(error)}"
            ) from error

    def broadcast(self, buffer: Tensor) -> Work:
        """Begin to send a buffer from rank 0, or to receive it."""
        return self._gloo.broadcast([buffer], BroadcastOptions())

    def wait(self, work: Work, sent: int, total: int) -> None:
        """Wait until a buffer has been sent or received.

        Args:
            work: What `broadcast` returned.
            sent: Bytes of all buffers up to this one.
            total: Bytes of all buffers.

        Raises:
            TransferError: If another member died or stalled.
        """
        try:
            work.wait(timedelta(seconds=self._group.timeout))
        except RuntimeError as error:
            raise TransferError(
                f"the weight transfer broke off at {sent:,} of {total:,} bytes, because a member of its group"
                f" died or stalled for {self._group.timeout:g} s: {_first_line(error)}"
            ) from error

    def receive(self, tensors: Sequence[TensorInfo]) -> Iterator[tuple[str, Tensor]]:
        """Yield tensors as they arrive, while the next bucket is on its way.

        Raises:
            TransferError: If another member died or stalled.
        """
        total, received = sum(tensor.num_bytes for tensor in tensors), 0
        coming: tuple[Work, Tensor, list[TensorInfo]] | None = None
        for bucket in [*buckets(tensors, self._group.bucket_bytes), None]:
            here, coming = coming, None
            if bucket is not None:
                buffer = torch.empty(sum(tensor.num_bytes for tensor in bucket), dtype=torch.uint8)
                coming = self.broadcast(buffer), buffer, bucket
            if here is not None:
                received += len(here[1])
                self.wait(here[0], received, total)
                yield from unpacked(here[1], here[2])

    def close(self) -> None:
        """Close the connections."""
        self._gloo.shutdown()


class GlooSender:
    """Sends by gloo; see `Sender` and `open_sender`."""

    def __init__(self, host: str, size: int, timeout: float) -> None:
        listener = listen(host)
        port = listener.getsockname()[1]
        # A store that waits for the others in its constructor would do so before they know its port.
        self._store = TCPStore(
            *(host, port, None, True),
            timeout=timedelta(seconds=timeout),
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )
        self.group = TransferGroup(
            "gloo", host, port, size, CPU_BUCKET_BYTES, key=uuid.uuid4().hex, timeout=timeout
        )
        self._gloo: GlooGroup | None = None

    def join(self) -> None:
        """Wait until every engine has joined."""
        self._gloo = GlooGroup(self.group, 0, self._store)

    def send(self, manifest: Manifest, tensors: Iterator[tuple[str, Tensor]]) -> None:
        """Send tensors to all engines, packing one bucket while another is on its way."""
        try:
            self._send(manifest, tensors)
        except TransferError:
            self.close()  # the engines need not wait for what will not come
            raise

    def _send(self, manifest: Manifest, tensors: Iterator[tuple[str, Tensor]]) -> None:
        assert self._gloo is not None
        total, sent = manifest.num_bytes, 0
        announced = check_announced(manifest, tensors)
        under_way: tuple[Work, Tensor, int] | None = None
        for bucket in buckets(manifest.tensors, self.group.bucket_bytes):
            buffer = _packed(bucket, announced)
            sent += len(buffer)
            if under_way is not None:
                self._gloo.wait(under_way[0], under_way[2], total)
            under_way = self._gloo.broadcast(buffer), buffer, sent
        if under_way is not None:
            self._gloo.wait(under_way[0], under_way[2], total)
        for _ in announced:  # raises if there are more than was announced
            pass

    def close(self) -> None:
        """Leave the group."""
        if self._gloo is not None:
            self._gloo.close()
            self._gloo = None


def _store_of(group: TransferGroup) -> TCPStore:
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
            f"no learner waits for engines at {group.host}:{group.port}: {_first_line(error)}"
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


def _packed(bucket: Sequence[TensorInfo], tensors: Iterator[tuple[str, Tensor]]) -> Tensor:
    """Copy the next tensors into a bucket's buffer."""
    buffer = torch.empty(sum(info.num_bytes for info in bucket), dtype=torch.uint8)
    place = 0
    for _, (_, tensor) in zip(bucket, tensors, strict=False):
        values = tensor.contiguous().view(-1).view(torch.uint8)
        buffer[place : place + len(values)] = values
        place += len(values)
    return buffer


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]
