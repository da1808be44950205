"""A learner's end of publishing: it gathers its weights, and its first rank sends them to the engines."""

from collections.abc import Iterator

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from posttrain.inference.adapters import AdapterFiles
from posttrain.inference.weight_transfer import (
    Backend,
    Manifest,
    Sender,
    TensorInfo,
    TransferGroup,
    open_sender,
)
from posttrain.run.node import node_address
from posttrain.training.core.distributed import rank
from posttrain.training.core.sharding import reshard
from posttrain.training.core.whole_weights import WholeWeights, adapter_tensors

#: Deviation of the canary's random values: large enough to change every log-prob, small enough to be finite.
CANARY_DEVIATION = 0.05


class WeightSource:
    """The weights of one rank's model, on their way to engines.

    Args:
        model: A model that `core.sharding.shard` has wrapped.
    """

    def __init__(self, model: PreTrainedModel | PeftModel) -> None:
        self._model = model
        self._weights = WholeWeights(model)
        self._sender: Sender | None = None
        self._kept: list[tuple[Tensor, Tensor]] = []

    def open(self, backend: Backend, size: int, timeout: float) -> TransferGroup:
        """Open a group in place of the one before; the first rank does.

        Args:
            backend: How tensors are to travel.
            size: Number of ranks: the first rank of the learners, and all workers of the engines.
            timeout: Seconds that joining and each bucket may take.
        """
        self.close()
        self._sender = open_sender(backend, node_address(), size, timeout)
        return self._sender.group

    def join(self) -> None:
        """Wait until every engine has joined the group; the first rank does.

        Raises:
            TransferError: If one of them does not in time.
        """
        assert self._sender is not None
        self._sender.join()

    def manifest(self) -> Manifest:
        """Describe what is sent; nothing is gathered."""
        described = self._weights.described()
        inner = self._model.get_base_model() if isinstance(self._model, PeftModel) else self._model
        assert isinstance(inner, PreTrainedModel)
        return Manifest(
            tuple(
                TensorInfo(each.name, str(each.dtype).removeprefix("torch."), each.shape)
                for each in described
            ),
            frozenset(inner.all_tied_weights_keys),
        )

    def send(self, manifest: Manifest) -> None:
        """Gather the weights in the order of all ranks, and send them from the first rank.

        Raises:
            TransferError: On the first rank, if an engine died or stalled.
        """
        weights = iter(self._weights)
        try:
            if rank() == 0:
                assert self._sender is not None
                self._sender.send(manifest, weights)
        finally:
            for _ in weights:  # the other ranks gather to the end
                pass

    def close(self) -> None:
        """Leave the group."""
        if self._sender is not None:
            self._sender.close()
            self._sender = None

    def adapter(self) -> AdapterFiles | None:
        """Gather the adapters as the files that PEFT writes; the first rank returns them."""
        assert isinstance(self._model, PeftModel)
        tensors = adapter_tensors(self._model)
        if rank():
            return None
        return AdapterFiles.of(self._model.peft_config["default"], tensors)

    @torch.no_grad()
    def begin_canary(self) -> int:
        """Give every adapter a random second matrix, so that one that never arrives is noticed.

        A fresh adapter's is zero: an engine without it computes the same as one with it.

        Returns:
            Number of layers that are adapted.
        """
        assert not self._kept
        reshard(self._model)
        random = torch.Generator().manual_seed(0)
        for parameter in self._second_matrices():
            self._kept.append((parameter, parameter.detach().clone()))
            values = torch.randn(parameter.shape, generator=random) * CANARY_DEVIATION
            _assign(parameter, values)
        return len(self._kept)

    @torch.no_grad()
    def end_canary(self) -> None:
        """Give every adapter its own second matrix back."""
        reshard(self._model)
        for parameter, values in self._kept:
            parameter.copy_(values)
        self._kept = []

    def _second_matrices(self) -> Iterator[Tensor]:
        for module in self._model.modules():
            if isinstance(module, LoraLayer):
                matrix = module.lora_B["default"].weight
                assert isinstance(matrix, Tensor)
                yield matrix


def _assign(parameter: Tensor, values: Tensor) -> None:
    """Set a parameter, of which this rank may hold a part, to the same whole values on every rank."""
    values = values.to(parameter.device, parameter.dtype)
    if isinstance(parameter, DTensor):
        values = distribute_tensor(values, parameter.device_mesh, parameter.placements)
    parameter.copy_(values)
