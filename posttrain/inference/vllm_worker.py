"""What we add to each of vLLM's workers, of which a tensor-parallel engine has one in a process per rank."""

import torch
from torch import nn
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

from posttrain.inference.weight_transfer_engine import abandon_update
from posttrain.models.precision import keep_float32_exact


class WorkerExtension:
    """Methods that vLLM mixes into its worker's class, called by name on every rank (`collective_rpc`)."""

    def compute_as_its_engine(self, float32: bool) -> None:
        """Set in a rank's own process what the engine set in its own; see `vllm_engine`."""
        if float32:
            keep_float32_exact()
        if not torch.cuda.is_available():
            torch.compiler.set_stance("force_eager")

    def repack_heads(self) -> None:
        """Pack each output matrix again for the CPU's kernel, which holds a copy of the weights.

        A reload packs the layers that it loads; an output matrix tied to the embeddings is none of them.
        """
        for module in self._served_model().modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)

    def abandon_weight_update(self) -> None:
        """End an update of the weights that broke off, so that another one can begin."""
        self._weight_update_active = False  # vLLM's own
        abandon_update(self._served_model())

    def _served_model(self) -> nn.Module:
        """Return this rank's part of the model."""
        return self.get_model()  # pyright: ignore[reportAttributeAccessIssue] (of vLLM's worker)
