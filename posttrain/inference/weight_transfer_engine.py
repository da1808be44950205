"""vLLM's side of a weight transfer: a gloo engine beside vLLM's own, and the calls of a transfer.

vLLM's own engines (`nccl`, `ipc`) need GPUs. `gloo` is registered in every worker process, because vLLM
imports the class of `WORKER_EXTENSION` there.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from vllm import LLMEngine
from vllm.config import VllmConfig
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import _place_kernel_tensors, get_layerwise_info

from posttrain.inference.weight_transfer import (
    GlooGroup,
    Manifest,
    TensorInfo,
    TransferError,
    TransferGroup,
    buckets,
    unpacked,
)

#: Name of the class that vLLM adds to its workers; importing it registers the gloo engine.
WORKER_EXTENSION = "posttrain.inference.weight_transfer_engine.TransferWorker"


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    """What a worker is told when it is to join a group: the fields of `TransferGroup`."""

    backend: str
    host: str
    port: int
    size: int
    bucket_bytes: int
    rank: int
    key: str
    timeout: float


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    """What a worker is told when it is to receive tensors, as in vLLM's own engines."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]


class GlooTransferEngine(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    """Receives weights by gloo, on CPUs."""

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo
    supports_draft_weight_update: bool = False

    _gloo: ClassVar[GlooGroup | None] = None

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        """Join a group, and leave the one before."""
        self.shutdown()
        group = TransferGroup(**asdict(init_info))
        limit = timedelta(seconds=group.timeout)
        try:
            store = dist.TCPStore(
                group.host, group.port, None, is_master=False, timeout=limit, wait_for_workers=False
            )
        except RuntimeError as error:
            raise TransferError(
                f"no learner waits for engines at {group.host}:{group.port}: {str(error)[:200]}"
            ) from error
        self._group, self._store = group, store
        self._joined = GlooGroup(group, group.rank + self.parallel_config.rank, store)

    def start_weight_update(self) -> None:
        """Prepare every layer for weights in a checkpoint's form."""
        initialize_layerwise_reload(self.model)

    def finish_weight_update(self) -> None:
        """Bring the layers into the form in which they are computed with."""
        finalize_layerwise_reload(self.model, self.model_config)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive and load tensors; vLLM's own method then waits for an accelerator."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        """Receive and load tensors, loading one bucket while the next is on its way."""
        if self._joined is None:
            raise TransferError("the engine was asked to receive weights before it had joined a group")
        self.model.load_weights(self._received(_tensors(update_info)))

    def _received(self, tensors: list[TensorInfo]) -> Iterator[tuple[str, Tensor]]:
        assert self._joined is not None
        total, received = sum(tensor.num_bytes for tensor in tensors), 0
        coming = None
        for bucket in [*buckets(tensors, self._group.bucket_bytes), None]:
            here = coming
            if bucket is not None:
                buffer = torch.empty(sum(tensor.num_bytes for tensor in bucket), dtype=torch.uint8)
                coming = self._joined.broadcast(buffer), buffer, bucket
            if here is not None:
                received += len(here[1])
                self._joined.wait(here[0], received, total)
                yield from unpacked(here[1], here[2])

    def shutdown(self) -> None:
        """Leave the group."""
        if self._joined is not None:
            self._joined.close()
            self._joined = None

    _joined: GlooGroup | None = None


def _tensors(update: GlooUpdateInfo) -> list[TensorInfo]:
    described = zip(update.names, update.dtype_names, update.shapes, strict=True)
    return [TensorInfo(name, dtype, tuple(shape)) for name, dtype, shape in described]


if "gloo" not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine("gloo", GlooTransferEngine)


class TransferWorker:
    """Methods that vLLM adds to each of its workers; called by `collective_rpc`."""

    def abandon_weight_update(self) -> None:
        """Put every layer back to where it was before an update that broke off, though not its values."""
        worker: Any = self
        worker._weight_update_active = False
        for layer in worker.model_runner.get_model().modules():
            info = get_layerwise_info(layer)
            if info.can_load():
                if info.kernel_tensors is not None:
                    _place_kernel_tensors(layer, info)
                info.reset()


class TransferReceiver:
    """An engine's end of weight transfers.

    Args:
        engine: The engine; made with `transfer_arguments`.
        on_cpu: Whether it computes on a CPU.
    """

    def __init__(self, engine: LLMEngine, on_cpu: bool) -> None:
        self._engine, self._on_cpu = engine, on_cpu
        self._joined = False

    @property
    def ranks(self) -> int:
        """Number of ranks that the engine takes in a group."""
        return self._engine.vllm_config.parallel_config.world_size

    def join(self, group: TransferGroup) -> None:
        """Have all workers join a group, and leave the one before.

        Raises:
            TransferError: If the others do not join in time.
        """
        info = asdict(group) if group.backend == "gloo" else _nccl_info(group)
        try:
            self._engine.collective_rpc("init_weight_transfer_engine", timeout=None, args=(info,))
        except Exception as error:
            raise _as_transfer_error(error) from error

    def receive(self, manifest: Manifest) -> None:
        """Receive all of a model's weights.

        The caller then drops whatever was computed with the old ones.

        Raises:
            TransferError: If the transfer broke off. The engine must not sample until another one succeeds.
        """
        update = {
            "names": [tensor.name for tensor in manifest.tensors],
            "dtype_names": [tensor.dtype for tensor in manifest.tensors],
            "shapes": [list(tensor.shape) for tensor in manifest.tensors],
        }
        try:
            self._engine.collective_rpc("start_weight_update")
            self._engine.collective_rpc("update_weights", args=(update,))
            self._engine.collective_rpc("finish_weight_update")
            if self._on_cpu:
                self._engine.apply_model(repack_head)
        except Exception as error:
            self._engine.collective_rpc("abandon_weight_update")
            raise _as_transfer_error(error) from error


def transfer_arguments(on_cpu: bool) -> dict[str, Any]:
    """Return the arguments of an engine that is to receive weights."""
    return {
        "weight_transfer_config": WeightTransferConfig(backend="gloo" if on_cpu else "nccl"),
        "worker_extension_cls": WORKER_EXTENSION,
    }


def repack_head(model: nn.Module) -> None:
    """Pack the output matrix for the CPU's kernel again, which a reload forgets if embeddings are tied."""
    for module in model.modules():
        if isinstance(module, VocabParallelEmbedding) and type(module).__name__ == "ParallelLMHead":
            module.quant_method.process_weights_after_loading(module)


def _nccl_info(group: TransferGroup) -> dict[str, Any]:
    return {
        "master_address": group.host,
        "master_port": group.port,
        "rank_offset": group.rank,
        "world_size": group.size,
        "packed": True,
        "packed_buffer_size_bytes": group.bucket_bytes,
    }


def _as_transfer_error(error: Exception) -> TransferError:
    return error if isinstance(error, TransferError) else TransferError(str(error)[:500])
