"""vLLM's side of a weight transfer, and for CPUs a gloo engine beside vLLM's own, which need GPUs.

Importing this registers the engine. Each of vLLM's worker processes does, since `vllm_worker` imports it.
"""

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn
from vllm import LLMEngine
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import _place_kernel_tensors, get_layerwise_info

from posttrain.inference.weight_transfer import (
    GlooGroup,
    Manifest,
    TensorInfo,
    TransferError,
    TransferGroup,
    as_transfer_error,
)


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

    _joined: GlooGroup | None = None

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        """Join a group, and leave the one before."""
        self.shutdown()
        group = TransferGroup(**asdict(init_info))
        self._joined = GlooGroup(group, group.rank + self.parallel_config.rank)

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
        model: Any = self.model
        model.load_weights(self._joined.receive(_tensors(update_info)))

    def shutdown(self) -> None:
        """Leave the group."""
        if self._joined is not None:
            self._joined.close()
            self._joined = None


def _tensors(update: GlooUpdateInfo) -> list[TensorInfo]:
    described = zip(update.names, update.dtype_names, update.shapes, strict=True)
    return [TensorInfo(name, dtype, tuple(shape)) for name, dtype, shape in described]


if "gloo" not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine("gloo", GlooTransferEngine)


def join_group(engine: LLMEngine, group: TransferGroup) -> None:
    """Have every worker of an engine join a group.

    Raises:
        TransferError: If the others do not join in time.
    """
    with as_transfer_error():
        engine.collective_rpc("init_weight_transfer_engine", args=(group.init_info(),))


def receive_tensors(engine: LLMEngine, manifest: Manifest) -> None:
    """Have every worker of an engine receive its part of a model's weights.

    Raises:
        TransferError: If they came in part only; another update can then begin.
    """
    try:
        with as_transfer_error():
            engine.collective_rpc("start_weight_update")
            engine.collective_rpc("update_weights", args=(manifest.update_info(),))
            engine.collective_rpc("finish_weight_update")
    except TransferError:
        engine.collective_rpc("abandon_weight_update")
        raise


def abandon_update(model: nn.Module) -> None:
    """Put every layer back to where it was before an update that broke off, though not its values."""
    for layer in model.modules():
        info = get_layerwise_info(layer)
        if info.can_load():
            if info.kernel_tensors is not None:
                _place_kernel_tensors(layer, info)
            info.reset()
