"""What we add to each of vLLM's workers, of which a tensor-parallel engine has one in a process per rank."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from vllm.lora.layers import LogitsProcessorWithLoRA
from vllm.lora.utils import replace_submodule
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

import posttrain.inference.weight_transfer_ipc  # noqa: F401 (registers its engine with vLLM)
from posttrain.inference.vllm_logits import bound_logits
from posttrain.inference.weight_transfer_engine import abandon_update
from posttrain.models.precision import keep_float32_exact


@dataclass(frozen=True)
class LoadedAdapter:
    """What a rank did with an adapter's tensors.

    Attributes:
        changed: Number of modules that it changes, but for experts.
        without_place: The modules that it has tensors of, and the model has not.
    """

    changed: int
    without_place: list[str]


class WorkerExtension:
    """Methods that vLLM mixes into its worker's class, called by name on every rank (`collective_rpc`)."""

    def compute_as_its_engine(self, float32: bool) -> None:
        """Set in a rank's own process what the engine set in its own; see `vllm_engine`."""
        if float32:
            keep_float32_exact()
        if not torch.cuda.is_available():
            torch.compiler.set_stance("force_eager")

    def bound_logits(self) -> None:
        """Hold the logits of given tokens a piece at a time."""
        bound_logits(self.model_runner)  # pyright: ignore[reportAttributeAccessIssue]

    def leave_output_matrix_alone(self) -> None:
        """Take the output matrix from those that adapters may change.

        vLLM applies an adapter of it as if there were one row of logits per request, which fails, or goes to
        wrong rows, where a prompt's log-probs are asked for. An adapter that changes it is then refused.
        """
        modules = self._lora_manager().modules
        model = self._served_model()
        for name, module in list(model.named_modules()):
            if isinstance(module, LogitsProcessorWithLoRA):
                replace_submodule(model, name, module.base_layer)
        for name in [name for name, module in modules.items() if isinstance(module, LogitsProcessorWithLoRA)]:
            del modules[name]

    def repack_heads(self) -> None:
        """Pack each output matrix again for the CPU's kernel, which holds a copy of the weights.

        A reload packs the layers that it loads; an output matrix tied to the embeddings is none of them.
        """
        for module in self._served_model().modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)

    def loaded_adapter(self, number: int) -> LoadedAdapter:
        """Say which modules an adapter changes, and which of its tensors have no place in the model."""
        manager = self._lora_manager()
        loras = manager.get_adapter(number).loras
        changed = 0
        for name in loras.keys() & manager.modules.keys():
            matrices = loras[name].lora_a  # a list where vLLM fuses several matrices
            if ".experts" not in name:
                changed += sum(each is not None for each in matrices) if isinstance(matrices, list) else 1
        return LoadedAdapter(changed, sorted(loras.keys() - manager.modules.keys()))

    def _lora_manager(self) -> Any:
        """Return vLLM's manager of this rank's adapters, which has no public accessor."""
        return self.model_runner.lora_manager._adapter_manager  # pyright: ignore[reportAttributeAccessIssue]

    def abandon_weight_update(self) -> None:
        """End an update of the weights that broke off, so that another one can begin."""
        self._weight_update_active = False  # vLLM's own
        abandon_update(self._served_model())

    def _served_model(self) -> nn.Module:
        """Return this rank's part of the model."""
        return self.get_model()  # pyright: ignore[reportAttributeAccessIssue] (of vLLM's worker)
