"""Load a model to train, and update it by steps that are skipped if they are not finite.

The supervised stages only load models here, since TRL's trainers have a training loop of their own. The
quickstart's first stage and the on-policy learner update their models by `Updates`.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.optim.optimizer import StateDict
from transformers import PreTrainedModel

from posttrain.config import ModelConfig
from posttrain.config.lora import Quantization
from posttrain.models.load import load_model
from posttrain.training.core.distributed import any_over_ranks, sum_gradients
from posttrain.training.core.update_guard import UpdateGuard

#: Checkpoints of a stage that are kept: the newest, and one to fall back to.
CHECKPOINTS_KEPT = 2
#: Where a checkpoint keeps the state of its training: everything besides the model that resuming needs.
STATE = Path("state") / "trainer.pt"


def load_policy(
    model: ModelConfig, checkpoint: Path, quantization: Quantization | None = None
) -> PreTrainedModel:
    """Load a checkpoint's weights, with those frozen that the run's settings name.

    Args:
        model: The run's model section.
        checkpoint: Directory or Hugging Face id.
        quantization: How to quantize the language model's linear layers; only adapters can then be trained.
    """
    return load_model(
        checkpoint,
        dtype=model.dtype,
        freeze_vision_tower=model.freeze_vision_tower,
        freeze_merger=model.freeze_merger,
        quantization=quantization,
        attn_implementation=model.attn_implementation,
        fused_layers=model.fused_layers,
    )


class UpdatesState(TypedDict):
    """The state of `Updates`, as a checkpoint keeps it."""

    optimizer: StateDict
    schedule: dict[str, object]
    skipped: int
    skipped_in_a_row: int


class Updates:
    """Optimiser, schedule and guard of a model whose gradients are summed over the ranks.

    Args:
        modules: The modules being trained.
        optimizer: The optimiser of their parameters.
        rate: Returns the factor of the learning rate at an update; updates are counted from 0.
        guard: Ends the run after too many updates that are not finite.
        max_grad_norm: Norm to which gradients are clipped; None does not clip.

    Attributes:
        optimizer: The optimiser.
        schedule: The schedule of its learning rate.
        skipped: Number of updates that were skipped since the last call of `take_skipped`.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        optimizer: torch.optim.Optimizer,
        rate: Callable[[int], float],
        guard: UpdateGuard,
        max_grad_norm: float | None,
    ) -> None:
        self._modules = modules
        self.optimizer = optimizer
        self.schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        self._guard = guard
        self._max_grad_norm = max_grad_norm
        self.skipped = 0

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next update."""
        return float(self.schedule.get_last_lr()[0])

    def step(self, loss_is_finite: bool = True) -> float:
        """Sum the gradients over the ranks and update the parameters, or skip the update.

        It is skipped if the loss or the gradient of any rank is not finite.

        Args:
            loss_is_finite: Whether the loss of this rank is finite.

        Returns:
            The gradient's norm before clipping.

        Raises:
            NonFiniteUpdates: If too many updates in a row were not finite.
        """
        named = [item for module in self._modules for item in module.named_parameters()]
        parameters = [parameter for _, parameter in named]
        sum_gradients(parameters)
        broken = self._guard.broken(named)
        norm = self._clipped_norm(parameters)
        [skip] = any_over_ranks(not (loss_is_finite and math.isfinite(norm)))
        if self._guard.admits(not skip, broken):
            self.optimizer.step()
        else:
            self.skipped += 1
        self.schedule.step()
        self.optimizer.zero_grad()
        return norm

    def _clipped_norm(self, parameters: Sequence[nn.Parameter]) -> float:
        """Clip the gradients, and return their norm before."""
        if self._max_grad_norm is not None:
            return clip_grad_norm_(parameters, self._max_grad_norm).item()
        return get_total_norm([each.grad for each in parameters if each.grad is not None]).item()

    def take_skipped(self) -> int:
        """Return the number of updates skipped since the last call."""
        skipped, self.skipped = self.skipped, 0
        return skipped

    def state_dict(self) -> UpdatesState:
        """Return everything that resuming needs besides the modules."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "skipped": self.skipped,
            "skipped_in_a_row": self._guard.in_a_row,
        }

    def load_state_dict(self, state: UpdatesState) -> None:
        """Continue from what `state_dict` returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.skipped = state["skipped"]
        self._guard.in_a_row = state["skipped_in_a_row"]
