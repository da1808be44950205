"""The learner: turns scored trajectories into policy updates.

One `Learner` a rank, all with the same weights; each takes a share of every mini-batch that is
balanced by tokens, and gradients are summed. Losses are sums with global normalisers, so the number
of ranks and of micro-batches changes nothing but the speed.
"""

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from posttrain.config import AlgorithmConfig, ModelConfig, RlStage
from posttrain.models.load import forward_hidden, save_model
from posttrain.models.logprobs import token_logprobs
from posttrain.objectives.packed import SampledTokens, truncated_importance_weights
from posttrain.objectives.policy_gradient import grpo_loss, gspo_loss
from posttrain.objectives.sapo import gate_quantiles, sapo_loss
from posttrain.rendering.collation import collate, pad_rows
from posttrain.rendering.rendering import Renderer
from posttrain.training.core.distributed import (
    max_over_ranks,
    rank,
    sum_over_ranks,
    world_size,
)
from posttrain.training.core.optimizers import build_optimizer
from posttrain.training.core.policy import STATE, Updates, load_policy
from posttrain.training.core.update_guard import UpdateGuard
from posttrain.types import Trajectory


class PolicyMismatch(RuntimeError):
    """Engine and learner disagree on the log-probs of the tokens that the engine sampled."""


@dataclass
class Share:
    """This rank's part of a mini-batch.

    Attributes:
        micro_batches: Lists of trajectories, each run forward and backward at once.
        sequences: Number of trajectories of the mini-batch over all ranks (the normaliser).
    """

    micro_batches: list[list[Trajectory]]
    sequences: int


def objective_of(algorithm: AlgorithmConfig) -> Callable[..., tuple[Tensor, dict[str, Tensor]]]:
    """The loss that the stage's settings name, its own parameters bound."""
    if algorithm.name == "sapo":
        return functools.partial(sapo_loss, tau_pos=algorithm.tau_pos, tau_neg=algorithm.tau_neg)
    loss = {"grpo": grpo_loss, "gspo": gspo_loss}[algorithm.name]
    return functools.partial(loss, clip_low=algorithm.clip_low, clip_high=algorithm.clip_high)


def share_of(trajectories: Sequence[Trajectory], micro_batch_size: int, index: int, of: int) -> Share:
    """Deal trajectories to ranks by length, so that every rank carries about the same tokens.

    Args:
        trajectories: A mini-batch.
        micro_batch_size: Trajectories run at once.
        index: The rank.
        of: Number of ranks.
    """
    by_length = sorted(range(len(trajectories)), key=lambda i: (-len(trajectories[i].token_ids), i))
    mine = [
        trajectories[i]
        for place, i in enumerate(by_length)
        # there and back again (0 1 1 0 …), or the first rank would get the longer of every pair
        if (place % of if place // of % 2 == 0 else of - 1 - place % of) == index
    ]
    pieces = [mine[i : i + micro_batch_size] for i in range(0, len(mine), micro_batch_size)]
    return Share(pieces, len(trajectories))


class Learner:
    """Model, optimiser and schedule of one rank.

    Args:
        model_config: How to load and freeze the model.
        stage: The RL stage's settings.
        checkpoint: Where to start from; its `state/` is restored where `resume` is set.
        resume: Whether the checkpoint is one of this stage's own.
    """

    def __init__(self, model_config: ModelConfig, stage: RlStage, checkpoint: Path, resume: bool) -> None:
        self.stage = stage
        self.renderer = Renderer.from_config(checkpoint, model_config)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model: Any = load_policy(model_config, checkpoint)
        self.model.to(self.device)
        if stage.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.objective = objective_of(stage.algorithm)
        self.tolerance = stage.tolerance(model_config.dtype)
        self.updates = Updates(
            [self.model],
            build_optimizer([self.model], stage.optimizer, stage.learning_rate, stage.weight_decay),
            self._rate,
            UpdateGuard(
                stage.max_skipped_updates,
                "Lower learning_rate, or look for a reward that is not finite in rollouts/",
            ),
            stage.max_grad_norm,
        )
        if resume:
            state = torch.load(checkpoint / STATE, map_location=self.device, weights_only=True)
            self.updates.load_state_dict(state)

    def _rate(self, update: int) -> float:
        """Warm-up, then the stage's decay, as a factor of the learning rate."""
        total = self.stage.max_steps * self.stage.algorithm.mini_batches
        warmup = self.stage.warmup_steps(self.stage.max_steps) * self.stage.algorithm.mini_batches
        if update < warmup:
            return (update + 1) / warmup
        progress = (update - warmup) / max(1, total - warmup)
        decays = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + np.cos(np.pi * progress))}
        return float(decays[self.stage.lr_scheduler_type])

    def update(self, trajectories: list[Trajectory]) -> dict[str, float]:
        """One rollout batch: check it against the engine, then one optimiser step a mini-batch.

        Args:
            trajectories: The whole batch, the same on every rank; all with an advantage. Without any (every
                reward failed, say) the policy stays as it is.

        Returns:
            The step's metrics, the same on every rank.

        Raises:
            PolicyMismatch: If the engine sampled from other weights than these.
            NonFiniteUpdates: If `max_skipped_updates` updates in a row were not finite.
        """
        if not trajectories:
            return {"update/skipped": float(self.stage.algorithm.mini_batches)}
        begun = time.perf_counter()
        self.model.train()
        mini_batches = self._mini_batches(trajectories)
        old = self._old_logprobs([micro for share in mini_batches for micro in share.micro_batches])
        metrics = self._agreement(old)
        pieces: list[dict[str, Tensor]] = []
        norms = [self._mini_batch_update(share, old, pieces) for share in mini_batches]
        metrics |= self._summary(norms, pieces)
        metrics["learning_rate"] = self.updates.learning_rate
        metrics["time/learner"] = time.perf_counter() - begun
        return metrics

    def _mini_batches(self, trajectories: list[Trajectory]) -> list[Share]:
        """Split by group, so that a group's episodes stay together; then deal to ranks."""
        groups = sorted({trajectory.group for trajectory in trajectories})
        count = min(self.stage.algorithm.mini_batches, len(groups))
        place = {group: number * count // len(groups) for number, group in enumerate(groups)}
        split = [[t for t in trajectories if place[t.group] == part] for part in range(count)]
        return [share_of(part, self.stage.per_device_batch_size, rank(), world_size()) for part in split]

    def _logprobs(self, micro: list[Trajectory]) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies of a micro-batch's sampled tokens, each [T], in sequence order."""
        batch = collate(micro, self.renderer, self.device)
        sampled = pad_rows([t.sampled for t in micro], False, bool).to(self.device)
        hidden = forward_hidden(self.model, batch)[:, :-1][sampled[:, 1:]]
        head: Any = self.model.get_output_embeddings()
        return token_logprobs(hidden, head.weight, batch["input_ids"][sampled])

    @torch.no_grad()
    def _old_logprobs(self, micros: list[list[Trajectory]]) -> dict[int, tuple[Tensor, Tensor]]:
        """Before the update: (learner's, engine's) log-probs by the micro-batch's identity."""
        result = {}
        for micro in micros:
            engine = [p for t in micro for p, s in zip(t.logprobs, t.sampled, strict=True) if s]
            result[id(micro)] = (self._logprobs(micro)[0], torch.tensor(engine, device=self.device))
        return result

    def _agreement(self, old: dict[int, tuple[Tensor, Tensor]]) -> dict[str, float]:
        """Compare engine and learner on the sampled tokens, and refuse to learn from another policy."""
        gaps = [(learner - engine).double() for learner, engine in old.values()]
        gap = torch.cat(gaps) if gaps else torch.zeros(0, dtype=torch.float64)
        # E over the engine's samples of (r − 1 − log r), r = π_learner/π_engine: never negative ("k3").
        sums = sum_over_ranks(torch.tensor([gap.abs().sum(), (gap.exp() - 1 - gap).sum(), len(gap)]))
        largest = max_over_ranks(gap.abs().max() if len(gap) else torch.zeros(()).double()).item()
        count = max(1.0, sums[2].item())
        metrics = {
            "logprob_gap/max": largest,
            "logprob_gap/mean": sums[0].item() / count,
            "kl/engine_learner": sums[1].item() / count,
        }
        exact = self.model.dtype == torch.float32
        measured = largest if exact else metrics["logprob_gap/mean"]
        if not measured <= self.tolerance:
            raise PolicyMismatch(
                f"engine and learner log-probs of the sampled tokens differ by {measured:.2e}, more than"
                f" logprob_tolerance = {self.tolerance:g}. The engine sampled from other"
                " weights (a publish that was skipped or half done), saw other pixels (compare image hashes"
                " and max_pixels), or uses another precision than the learner (model.dtype)"
            )
        return metrics

    def _mini_batch_update(
        self, share: Share, old: dict[int, tuple[Tensor, Tensor]], pieces: list[dict[str, Tensor]]
    ) -> float:
        """Forward and backward of this rank's micro-batches, then one step.

        Returns:
            The gradient's norm; each micro-batch's metrics are added to `pieces`.
        """
        for micro in share.micro_batches:
            logprobs, entropy = self._logprobs(micro)
            old_logprobs, engine_logprobs = old[id(micro)]
            lengths = torch.tensor([sum(t.sampled) for t in micro], device=self.device)
            advantages = torch.tensor([t.advantage for t in micro], device=self.device)
            weights = truncated_importance_weights(
                old_logprobs, engine_logprobs, self.stage.algorithm.importance_cap
            )
            tokens = SampledTokens(
                logprobs,
                old_logprobs,
                advantages.repeat_interleave(lengths),
                torch.arange(len(micro), device=self.device).repeat_interleave(lengths),
                share.sequences,
                importance_weights=weights,
            )
            loss, piece = self.objective(tokens)
            loss.backward()
            pieces.append(piece | {"loss": loss.detach(), "entropy_sum": entropy.detach().sum()})
        return self.updates.step()

    def _summary(self, norms: list[float], pieces: list[dict[str, Tensor]]) -> dict[str, float]:
        """Means over the tokens of all ranks; the gate's quantiles are this rank's."""
        names = ("loss", "entropy_sum", "kl_sum", "clipped_sum", "num_tokens")
        sums = [sum(piece[name].item() for piece in pieces if name in piece) for name in names]
        sums = sum_over_ranks(torch.tensor(sums, dtype=torch.float64)).tolist()
        total = dict(zip(names, sums, strict=True))
        tokens = max(1.0, total["num_tokens"])
        finite = [norm for norm in norms if math.isfinite(norm)]
        metrics = {
            "loss": total["loss"] / len(norms),
            "entropy": total["entropy_sum"] / tokens,
            "kl/old_new": total["kl_sum"] / tokens,
            "grad_norm": sum(finite) / len(finite) if finite else math.nan,
            "update/skipped": float(self.updates.take_skipped()),
        }
        if self.stage.algorithm.name == "sapo":
            return metrics | gate_quantiles(pieces)
        return metrics | {"clip_fraction": total["clipped_sum"] / tokens}

    def write_weights(self, directory: Path) -> None:
        """Write the weights alone, for the engines (rank 0)."""
        if rank() == 0:
            self.model.save_pretrained(directory)

    def write_checkpoint(self, directory: Path) -> None:
        """Write a checkpoint that loads anywhere, with what resuming needs in `state/` (rank 0)."""
        save_model(self.model, self.renderer.processor, directory)
        (directory / STATE).parent.mkdir()
        torch.save(self.updates.state_dict(), directory / STATE)
