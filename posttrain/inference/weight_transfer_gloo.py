"""Weights between CPUs: gloo broadcasts them, and one bucket is packed or loaded as another travels."""

import uuid
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import BroadcastOptions, PrefixStore, ProcessGroupGloo, TCPStore, Work  # pyright: ignore[reportPrivateImportUsage]

from posttrain.inference.weight_transfer import (
    Manifest,
    TensorInfo,
    TransferError,
    TransferGroup,
    address_towards,
    buckets,
    check_announced,
    first_line,
    listening_store,
    store_of,
    unpacked,
)

#: Bytes of a bucket: enough to keep a wire busy, and little beside a model.
BUCKET_BYTES = 32 << 20


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
        self._store = own or store_of(group)
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
                f" within {group.timeout:g} s: {first_line(error)}"
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
                f" died or stalled for {self._group.timeout:g} s: {first_line(error)}"
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
        self._store, port = listening_store(host, timeout)
        self.group = TransferGroup("gloo", host, port, size, BUCKET_BYTES, timeout, key=uuid.uuid4().hex)
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


def _packed(bucket: Sequence[TensorInfo], tensors: Iterator[tuple[str, Tensor]]) -> Tensor:
    """Copy the next tensors into a bucket's buffer."""
    buffer = torch.empty(sum(info.num_bytes for info in bucket), dtype=torch.uint8)
    place = 0
    for _, (_, tensor) in zip(bucket, tensors, strict=False):
        values = tensor.contiguous().view(-1).view(torch.uint8)
        buffer[place : place + len(values)] = values
        place += len(values)
    return buffer
