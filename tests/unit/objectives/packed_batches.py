"""Packed tokens in float64, and TRL's own losses of them."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from trl.trainer.grpo_trainer import GRPOTrainer

from posttrain.objectives.packed import SampledTokens, truncated_importance_weights
from posttrain.objectives.policy_gradient import cispo_loss, grpo_loss, gspo_loss
from posttrain.objectives.sapo import sapo_loss

CAP = 1.5
LENGTHS = (5, 1, 9, 3, 7, 2, 4, 6)
#: The constant of Dr. GRPO's normaliser.
LONGEST = 12
LOSSES: dict[str, Callable[..., tuple[Tensor, dict[str, Tensor]]]] = {
    "sapo": partial(sapo_loss, tau_pos=1.0, tau_neg=1.05),
    "sapo-sharp": partial(sapo_loss, tau_pos=3.0, tau_neg=7.0),
    "grpo": partial(grpo_loss, clip_low=0.2, clip_high=0.28),
    "grpo-dual": partial(grpo_loss, clip_low=0.2, clip_high=0.28, dual_clip=1.4),
    "gspo": partial(gspo_loss, clip_low=0.05, clip_high=0.08),
    "gspo-dual": partial(gspo_loss, clip_low=0.05, clip_high=0.08, dual_clip=1.09),
    "cispo": partial(cispo_loss, clip_high=0.3),
}
#: Our means, and which of TRL's losses have them.
MEANS = {"sequence": ("grpo", "sapo"), "token": ("bnpo", "dapo", "cispo"), "constant": ("dr_grpo",)}


@dataclass
class Batch:
    """Packed tokens in float64."""

    logprobs: Tensor
    old_logprobs: Tensor
    engine_logprobs: Tensor
    advantages: Tensor
    sequence_ids: Tensor

    def at(self, rows: Tensor) -> "Batch":
        return Batch(*(value[rows] for value in vars(self).values()))

    def tokens(
        self, cap: float | None = None, mean: str = "sequence", left: int | None = None
    ) -> SampledTokens:
        """Return them as the losses take them; `left` is the number of tokens of the whole batch."""
        weights = None
        if cap is not None:
            weights = truncated_importance_weights(self.old_logprobs, self.engine_logprobs, cap)
        count = sum(LENGTHS) if left is None else left
        normalizers = {"sequence": len(LENGTHS), "token": count, "constant": len(LENGTHS) * LONGEST}
        return SampledTokens(
            self.logprobs,
            self.old_logprobs,
            self.advantages,
            self.sequence_ids,
            normalizers[mean],
            weights,
            per_sequence=mean == "sequence",
        )


def random_batch(seed: int, spread: float = 0.4) -> Batch:
    """Draw a batch with ratios around 1, and with advantages of both signs, one of them zero."""
    generator = torch.Generator().manual_seed(seed)
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    ids = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    old = -normal(len(ids)).abs() - 0.1
    advantages = normal(len(LENGTHS))
    advantages[1] = 0.0
    return Batch(
        (old + spread * normal(len(ids))).requires_grad_(),
        old,
        old + 0.5 * normal(len(ids)),
        advantages[ids],
        ids,
    )


@dataclass(frozen=True)
class Options:
    """What TRL is asked for beside a loss of ours."""

    loss_type: str = ""
    cap: float | None = None
    beta: float = 0.0
    reference: Tensor | None = None
    masked: tuple[int, ...] = ()


def trl_loss(name: str, batch: Batch, options: Options) -> Tensor:
    """Compute TRL's own loss of the same tokens, padded to a rectangle."""
    sequences, width = len(LENGTHS), max(LENGTHS)
    mask = torch.arange(width) < torch.tensor(LENGTHS)[:, None]
    counted = mask.clone()
    counted[list(options.masked)] = False

    def padded(values: Tensor) -> Tensor:
        return torch.zeros(sequences, width, dtype=values.dtype).masked_scatter(mask, values)

    given = LOSSES[name].keywords  # type: ignore[attr-defined]
    usual = {"sapo": "sapo", "cispo": "cispo"}.get(name.split("-")[0], "grpo")
    clip_high = given.get("clip_high")
    settings: Any = SimpleNamespace(
        top_entropy_quantile=1.0,
        aux_loss_enabled=False,
        off_policy_mask_threshold=None,
        importance_sampling_level="sequence" if name.startswith("gspo") else "token",
        beta=options.beta,
        loss_type=options.loss_type or usual,
        epsilon_low=given.get("clip_low"),
        epsilon_high=1 + clip_high if name == "cispo" else clip_high,
        args=SimpleNamespace(
            delta=given.get("dual_clip"),
            sapo_temperature_pos=given.get("tau_pos"),
            sapo_temperature_neg=given.get("tau_neg"),
            use_bias_correction_kl=False,
        ),
        use_vllm=options.cap is not None,
        vllm_importance_sampling_correction=True,
        max_completion_length=LONGEST,
        model=SimpleNamespace(training=False),
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        accelerator=SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x, num_processes=1),
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (
            padded(batch.logprobs),
            torch.zeros(sequences, width),
            None,
        ),
    )
    ids = torch.zeros(sequences, width, dtype=torch.long)
    off_policy = (batch.old_logprobs - batch.engine_logprobs).exp().clamp(max=CAP)
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": torch.ones_like(ids[:, :1]),
        "completion_ids": ids,
        "completion_mask": counted.long(),
        "num_items_in_batch": counted.sum(),
        "advantages": torch.stack([batch.advantages[batch.sequence_ids == s][0] for s in range(sequences)]),
        "old_per_token_logps": padded(batch.old_logprobs),
        "importance_sampling_ratio": padded(off_policy),
        "ref_per_token_logps": padded(batch.logprobs if options.reference is None else options.reference),
    }
    return GRPOTrainer._compute_loss(settings, None, inputs)
