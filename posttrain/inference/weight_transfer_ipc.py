"""Weights between learners and engines that share GPUs: CUDA's handles of a buffer, and vLLM's IPC engine.

NCCL refuses two ranks on one GPU. So each learner packs whole tensors into a buffer of its GPU, and the
engine's worker on the same GPU reads them there. What the two tell each other goes through the group's store,
and each bucket has a time limit. Importing this registers the engine.
"""

import itertools
import pickle
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.ipc_engine import (
    IPCWeightTransferEngine,
    IPCWeightTransferInitInfo,
    IPCWeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.packed_tensor import packed_ipc_producer

from posttrain.inference.weight_transfer import (
    GPU_BUCKET_BYTES,
    Manifest,
    TransferError,
    TransferGroup,
    as_transfer_error,
    check_announced,
    listening_store,
    store_of,
)
from posttrain.inference.weight_transfer_engine import GroupInitInfo, TensorsUpdateInfo

#: Seconds between two looks at who has joined.
LOOK_S = 0.05


class SharedGpuTransferEngine(IPCWeightTransferEngine):
    """Receives weights from the learner on the same GPU."""

    init_info_cls = GroupInitInfo  # pyright: ignore[reportAssignmentType]
    update_info_cls = TensorsUpdateInfo  # pyright: ignore[reportAssignmentType]

    def init_transfer_engine(self, init_info: Any) -> None:
        """Tell the group on which GPU this worker is."""
        group = TransferGroup(**asdict(init_info))
        super().init_transfer_engine(IPCWeightTransferInitInfo(packed=True))
        self._place = _SharedGpu(group, store_of(group), self.device)
        self._place.announce()

    def receive_weights(self, update_info: Any) -> None:
        """Read bucket after bucket from the learner's memory."""
        left = len(update_info.names)
        for bucket in self._place.next_transfer():
            chunk = self._place.fetch(bucket)
            super().receive_weights(IPCWeightTransferUpdateInfo(**chunk))
            torch.cuda.synchronize(self.device)
            self._place.acknowledge(bucket)
            left -= len(chunk["names"])
            if left <= 0:
                break


class _SharedGpu:
    """What the learner and the engine's worker on one GPU tell each other."""

    def __init__(self, group: TransferGroup, store: TCPStore, device: torch.device) -> None:
        self.uuid = str(torch.cuda.get_device_properties(device).uuid)
        self._timeout = timedelta(seconds=group.timeout)
        self._store = PrefixStore(group.key, store)
        self._transfers = itertools.count()

    def announce(self) -> None:
        """Say that an engine's worker is on this GPU."""
        self._store.set(f"worker/{self.uuid}", "")
        self._store.add("workers", 1)

    def wait_for_workers(self, number: int) -> bool:
        """Wait until all workers have announced themselves; return whether one is on this GPU."""
        end = time.monotonic() + self._timeout.total_seconds()
        while (found := self._store.add("workers", 0)) < number:
            if time.monotonic() > end:
                raise TransferError(f"{found} of {number} workers have joined the weight transfer in time")
            time.sleep(LOOK_S)
        return self._store.check([f"worker/{self.uuid}"])

    def next_transfer(self) -> Iterator[str]:
        """Begin a transfer; yield the names of its buckets."""
        transfer = next(self._transfers)
        return (f"{transfer}/{bucket}/{self.uuid}" for bucket in itertools.count())

    def offer(self, bucket: str, chunk: dict[str, Any]) -> None:
        """Show the worker a bucket, and wait until it has read it."""
        store: Any = self._store  # torch's stubs take text alone
        store.set(bucket, pickle.dumps(chunk))
        self._store.wait([f"{bucket}/read"], self._timeout)

    def fetch(self, bucket: str) -> dict[str, Any]:
        """Wait for a bucket of the learner's."""
        try:
            self._store.wait([bucket], self._timeout)
        except RuntimeError as error:
            raise TransferError(
                f"no learner has offered weights on GPU {self.uuid}: it died or stalled, or there is none on"
                " it, as placement: shared needs"
            ) from error
        return pickle.loads(self._store.get(bucket))  # noqa: S301 (of the run's own learners)

    def acknowledge(self, bucket: str) -> None:
        """Say that a bucket was read."""
        self._store.set(f"{bucket}/read", "")


class SharedGpuSender:
    """A learner's end, on every rank; see `Sender`."""

    def __init__(self, host: str, size: int, timeout: float) -> None:
        self._store, port = listening_store(host, timeout)
        self.group = TransferGroup(
            "shared_gpu", host, port, size, GPU_BUCKET_BYTES, timeout, key=uuid.uuid4().hex
        )

    @classmethod
    def beside(cls, group: TransferGroup) -> "SharedGpuSender":
        """Return the end of another rank than the first, which opened the group."""
        made = cls.__new__(cls)
        made.group, made._store = group, store_of(group)
        return made

    def join(self) -> None:
        """Wait until every engine has joined."""
        device = torch.device("cuda", torch.cuda.current_device())
        self._place = _SharedGpu(self.group, self._store, device)
        with as_transfer_error():
            self._has_worker = self._place.wait_for_workers(self.group.size - 1)

    def send(self, manifest: Manifest, tensors: Iterator[tuple[str, Tensor]]) -> None:
        """Offer tensors to the worker on this GPU, if there is one."""
        if not self._has_worker:
            return
        largest = max(tensor.num_bytes for tensor in manifest.tensors)
        chunks = packed_ipc_producer(
            iterator=check_announced(manifest, tensors),
            gpu_uuid=self._place.uuid,
            post_iter_func=lambda item: item[1],
            buffer_size_bytes=max(self.group.bucket_bytes, largest),
        )
        with as_transfer_error():
            for bucket, chunk in zip(self._place.next_transfer(), chunks, strict=False):
                told = asdict(chunk)
                self._place.offer(bucket, told | {"ipc_handles": told.pop("ipc_handle")})
            torch.cuda.ipc_collect()

    def close(self) -> None:
        """Leave the group; the store ends with this object."""


if "shared_gpu" not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine("shared_gpu", SharedGpuTransferEngine)
