"""Load a model to train, and update it by steps that are skipped if they are not finite.

The supervised stages only load models here, since TRL's trainers have a training loop of their own. The
quickstart's first stage and the on-policy learner update their models by `Updates`.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from posttrain.config import ModelConfig
from posttrain.config.lora import Quantization
from posttrain.models.load import load_model
from posttrain.training.core.distributed import any_over_ranks
from posttrain.training.core.update_guard import UpdateGuard

#: Checkpoints of a stage that are kept: the newest, and one to fall back to.
CHECKPOINTS_KEPT = 2


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


class Updates:
    """Optimiser, schedule and guard of a model whose gradients have been summed over the ranks.

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
        self.schedule = LambdaLR(optimizer, rate)
        self._guard = guard
        self._max_grad_norm = max_grad_norm
        self.skipped = 0

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next update."""
        return float(self.schedule.get_last_lr()[0])

    def step(self, loss_is_finite: bool = True) -> float:
        """Update the parameters, or skip the update.

        It is skipped if the loss or the gradient of any rank is not finite.

        Args:
            loss_is_finite: Whether the loss of this rank is finite.

        Returns:
            The gradient's norm before clipping.

        Raises:
            NonFiniteUpdates: If too many updates in a row were not finite.
        """
        named = [item for module in self._modules for item in module.named_parameters()]
        broken = self._guard.broken(named)
        norm = clip_gradients((parameter for _, parameter in named), self._max_grad_norm)
        [skip] = any_over_ranks(not (loss_is_finite and math.isfinite(norm)))
        if self._guard.admits(not skip, broken):
            self.optimizer.step()
        else:
            self.skipped += 1
        self.schedule.step()
        self.optimizer.zero_grad()
        return norm

    def take_skipped(self) -> int:
        """Return the number of updates skipped since the last call."""
        skipped, self.skipped = self.skipped, 0
        return skipped

    def figures(self) -> dict[str, int]:
        """Return what resuming needs besides the modules and the optimiser's state."""
        return {
            "updates": self.schedule.last_epoch,
            "skipped": self.skipped,
            "skipped_in_a_row": self._guard.in_a_row,
        }

    def restore(self, figures: Mapping[str, int]) -> None:
        """Continue from what `figures` returned."""
        continue_schedule(self.schedule, figures["updates"])
        self.skipped = figures["skipped"]
        self._guard.in_a_row = figures["skipped_in_a_row"]


def continue_schedule(schedule: LambdaLR, updates: int) -> None:
    """Put a new schedule, and its optimiser's learning rates, to where they are after a number of updates."""
    schedule.last_epoch = updates
    rates = [base * rate(updates) for base, rate in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    schedule._last_lr = rates
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float | None) -> float:
    """Clip gradients by their norm over all parameters and shards; return the norm before.

    Args:
        parameters: The parameters, whole or sharded; those without a gradient are left out.
        max_norm: The largest norm; None clips nothing.
    """
    trained = [parameter for parameter in parameters if parameter.grad is not None]
    norm = get_total_norm([parameter.grad for parameter in trained if parameter.grad is not None])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    if max_norm is not None:
        clip_grads_with_norm_(trained, max_norm, norm)
    return norm.item()
