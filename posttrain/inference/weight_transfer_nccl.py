"""The learners' end of a weight transfer between GPUs, by vLLM's own NCCL engine.

NCCL waits without a limit for a peer that died in the middle of a broadcast. The learners' call has one: the
run then ends, names the engine, and goes on with `--resume`.
"""

import uuid
from collections.abc import Iterator

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.nccl_common import trainer_init
from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer

from posttrain.inference.weight_transfer import (
    GPU_BUCKET_BYTES,
    Manifest,
    TransferGroup,
    as_transfer_error,
    check_announced,
)
from posttrain.run.node import listen


class NcclSender:
    """Sends by NCCL; see `Sender` and `open_sender`."""

    def __init__(self, host: str, size: int, timeout: float) -> None:
        with listen(host) as probe:  # vLLM opens its store at a port that is given to it
            port = probe.getsockname()[1]
        self.group = TransferGroup(
            "nccl", host, port, size, GPU_BUCKET_BYTES, key=uuid.uuid4().hex, timeout=timeout
        )

    def join(self) -> None:
        """Wait until every engine has joined."""
        with as_transfer_error():
            self._nccl = trainer_init(self.group.init_info())

    def send(self, manifest: Manifest, tensors: Iterator[tuple[str, Tensor]]) -> None:
        """Send tensors to all engines."""
        with as_transfer_error():
            packed_nccl_broadcast_producer(
                iterator=check_announced(manifest, tensors),
                group=self._nccl,
                src=0,
                post_iter_func=lambda item: item[1],
                buffer_size_bytes=self.group.bucket_bytes,
            )
            torch.cuda.current_stream().synchronize()

    def close(self) -> None:
        """Leave the group."""
        if hasattr(self, "_nccl"):
            self._nccl.destroy()
            del self._nccl
