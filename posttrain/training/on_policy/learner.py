"""The learner: turns scored trajectories into policy updates.

Each rank has a `Learner`, with the same weights or its part of them. It takes a share of every mini-batch,
balanced by tokens, and gradients are summed over the ranks. Losses are sums with global normalisers, so the
number of ranks and of micro-batches changes nothing but the speed.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.config import ModelConfig, RlStage
from posttrain.models.load import loaded_type
from posttrain.models.supervised_head import IGNORED, add_supervised_head
from posttrain.objectives.packed import SampledTokens, truncated_importance_weights
from posttrain.rendering.collation import collate, pad_rows, prepare
from posttrain.rendering.rendering import Renderer
from posttrain.run.metric_names import (
    ENTROPY,
    GRAD_NORM,
    KL_ENGINE_LEARNER,
    KL_OLD_NEW,
    LEARNING_RATE,
    LOGPROB_GAP_MAX,
    LOGPROB_GAP_MEAN,
    LOSS,
    TIME_LEARNER,
    UPDATE_SKIPPED,
)
from posttrain.training.core.checkpoints import load_state, save_state, write_weights
from posttrain.training.core.distributed import (
    barrier,
    max_over_ranks,
    rank,
    sum_over_ranks,
    world_size,
)
from posttrain.training.core.optimizers import build_optimizer
from posttrain.training.core.policy import Updates, load_policy
from posttrain.training.core.sharding import reduce_over_replicas, shard
from posttrain.training.core.update_guard import UpdateGuard
from posttrain.training.core.whole_weights import WholeWeights
from posttrain.training.on_policy.objectives import Objective, Piece, objective_of
from posttrain.types import Trajectory

CPU = torch.device("cpu")


class PolicyMismatch(RuntimeError):
    """Engine and learner disagree on the log-probs of the tokens that the engine sampled."""


@dataclass
class MicroBatch:
    """Trajectories that are run forward and backward at once.

    Attributes:
        trajectories: The trajectories.
        counts: Whether they are learned from; if not, they are run for the other ranks' sake.
        old_logprobs: [T] the learner's log-probs of their sampled tokens before the update.
        engine_logprobs: [T] the engine's log-probs of the same tokens. Both are empty until
            `Learner.compute_old_logprobs` has been called.
    """

    trajectories: list[Trajectory]
    counts: bool = True
    old_logprobs: Tensor = field(default_factory=lambda: torch.empty(0))
    engine_logprobs: Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass(frozen=True)
class Share:
    """This rank's part of a mini-batch.

    Attributes:
        micro_batches: The part in pieces, as many as every other rank has, since they exchange weights and
            gradients with each. What a rank has too few of is made up by pieces that do not count.
        sequences: Number of trajectories of the mini-batch over all ranks (the normaliser).
    """

    micro_batches: list[MicroBatch]
    sequences: int


def share_of(trajectories: Sequence[Trajectory], micro_batch_size: int, index: int, of: int) -> Share:
    """Deal trajectories to ranks by length, so that every rank gets about the same number of tokens.

    Args:
        trajectories: A mini-batch; at least one.
        micro_batch_size: Number of trajectories that are run at once.
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
    pieces = [MicroBatch(mine[i : i + micro_batch_size]) for i in range(0, len(mine), micro_batch_size)]
    largest_share = math.ceil(len(trajectories) / of)
    missing = math.ceil(largest_share / micro_batch_size) - len(pieces)
    shortest = trajectories[by_length[-1]]
    return Share(pieces + [MicroBatch([shortest], counts=False) for _ in range(missing)], len(trajectories))


class Learner:
    """Model, optimiser and schedule of one rank.

    Args:
        model_config: How to load and freeze the model.
        stage: The rl stage's settings.
        checkpoint: Where to start from.
        resume: Whether the checkpoint is one of this stage's own; its `state/` is then restored.
        device: Where to train.
    """

    def __init__(
        self,
        model_config: ModelConfig,
        stage: RlStage,
        checkpoint: Path,
        resume: bool,
        device: torch.device = CPU,
    ) -> None:
        self.stage = stage
        self.device = device
        self.renderer = Renderer.from_config(checkpoint, model_config).on(self.device)
        self.model: PreTrainedModel = load_policy(model_config, checkpoint)
        add_supervised_head(self.model)
        if stage.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(offload=stage.offload_activations)
        barrier()  # a rank whose disk is slow has its weights, too: what follows has a deadline
        shard(self.model, stage.sharding, self.device, masters=stage.float32_masters)
        self.objective: Objective = objective_of(stage.algorithm)
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
            self.updates.restore(load_state(checkpoint, self.model, self.updates.optimizer))

    def _rate(self, update: int) -> float:
        """Compute the factor of the learning rate: it rises during the warm-up, then the stage's decay."""
        total = self.stage.max_steps * self.stage.algorithm.mini_batches
        warmup = self.stage.warmup_steps(self.stage.max_steps) * self.stage.algorithm.mini_batches
        if update < warmup:
            return (update + 1) / warmup
        progress = (update - warmup) / max(1, total - warmup)
        decays = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + np.cos(np.pi * progress))}
        return float(decays[self.stage.lr_scheduler_type])

    def update(self, trajectories: list[Trajectory]) -> dict[str, float]:
        """Check a rollout batch against the engine, then make one optimiser step for each mini-batch.

        Args:
            trajectories: The whole batch, the same on every rank; all have an advantage. If it is empty
                (because every reward failed, say) the policy stays as it is.

        Returns:
            The step's metrics, the same on every rank.

        Raises:
            PolicyMismatch: If the engine sampled from other weights than these.
            NonFiniteUpdates: If `max_skipped_updates` updates in a row were not finite.
        """
        if not trajectories:
            return {UPDATE_SKIPPED: float(self.stage.algorithm.mini_batches)}
        begun = time.perf_counter()
        self.model.train()
        mini_batches = self._mini_batches(trajectories)
        micro_batches = [micro for share in mini_batches for micro in share.micro_batches]
        prepare([trajectory for micro in micro_batches for trajectory in micro.trajectories], self.renderer)
        self.compute_old_logprobs(micro_batches)
        metrics = self._agreement(micro_batches)
        pieces: list[Piece] = []
        norms = [self._mini_batch_update(share, pieces) for share in mini_batches]
        metrics |= self._summary(norms, pieces)
        metrics[LEARNING_RATE] = self.updates.learning_rate
        metrics[TIME_LEARNER] = time.perf_counter() - begun
        return metrics

    def _mini_batches(self, trajectories: list[Trajectory]) -> list[Share]:
        """Split a batch by groups, whose episodes stay together, and take this rank's share of each part."""
        groups = sorted({trajectory.group for trajectory in trajectories})
        count = min(self.stage.algorithm.mini_batches, len(groups))
        place = {group: number * count // len(groups) for number, group in enumerate(groups)}
        split = [[t for t in trajectories if place[t.group] == part] for part in range(count)]
        return [share_of(part, self.stage.per_device_batch_size, rank(), world_size()) for part in split]

    def _logprobs(self, micro: list[Trajectory]) -> tuple[Tensor, Tensor]:
        """Compute log-probs and entropies of the sampled tokens, each [T], one trajectory after another."""
        batch = collate(micro, self.renderer, self.device)
        sampled = pad_rows([t.sampled for t in micro], False, bool).to(self.device)
        labels = batch["input_ids"].masked_fill(~sampled, IGNORED)
        return self.model(**batch, supervised_labels=labels, entropy=True)

    @torch.no_grad()
    def compute_old_logprobs(self, micro_batches: Sequence[MicroBatch]) -> None:
        """Set the log-probs of micro-batches: the learner's with its present weights, and the engine's."""
        for micro in micro_batches:
            engine = [
                logprob
                for trajectory in micro.trajectories
                for logprob, sampled in zip(trajectory.logprobs, trajectory.sampled, strict=True)
                if sampled
            ]
            micro.old_logprobs, _ = self._logprobs(micro.trajectories)
            micro.engine_logprobs = torch.tensor(engine, device=self.device)

    def _agreement(self, micro_batches: Sequence[MicroBatch]) -> dict[str, float]:
        """Compare engine and learner on the sampled tokens, and refuse to learn from another policy.

        Raises:
            PolicyMismatch: If their log-probs differ by more than the tolerance.
        """
        counted = [micro for micro in micro_batches if micro.counts]
        gaps = [(micro.old_logprobs - micro.engine_logprobs).double().cpu() for micro in counted]
        gap = torch.cat(gaps) if gaps else torch.zeros(0, dtype=torch.float64)
        # E over the engine's samples of (r − 1 − log r), r = π_learner/π_engine: never negative ("k3").
        sums = sum_over_ranks(torch.tensor([gap.abs().sum(), (gap.exp() - 1 - gap).sum(), len(gap)]))
        largest = max_over_ranks(gap.abs().max() if len(gap) else torch.zeros(()).double()).item()
        count = max(1.0, sums[2].item())
        metrics = {
            LOGPROB_GAP_MAX: largest,
            LOGPROB_GAP_MEAN: sums[0].item() / count,
            KL_ENGINE_LEARNER: sums[1].item() / count,
        }
        exact = loaded_type(self.model) == torch.float32
        measured = largest if exact else metrics[LOGPROB_GAP_MEAN]
        if not measured <= self.tolerance:
            raise PolicyMismatch(
                f"engine and learner log-probs of the sampled tokens differ by {measured:.2e}, more than"
                f" logprob_tolerance = {self.tolerance:g}. The engine sampled from other"
                " weights (a publish that was skipped or half done), saw other pixels (compare image hashes"
                " and max_pixels), or uses another precision than the learner (model.dtype)"
            )
        return metrics

    def _mini_batch_update(self, share: Share, pieces: list[Piece]) -> float:
        """Run this rank's micro-batches forward and backward, then make one optimiser step.

        Args:
            share: This rank's part of the mini-batch.
            pieces: Each micro-batch's sums are added to it.

        Returns:
            The gradient's norm.
        """
        for micro in share.micro_batches:
            reduce_over_replicas(self.model, micro is share.micro_batches[-1])
            logprobs, entropy = self._logprobs(micro.trajectories)
            if not micro.counts:
                (0 * logprobs.sum()).backward()
                continue
            lengths = torch.tensor([sum(t.sampled) for t in micro.trajectories], device=self.device)
            advantages = torch.tensor([t.advantage for t in micro.trajectories], device=self.device)
            tokens = SampledTokens(
                logprobs=logprobs,
                old_logprobs=micro.old_logprobs,
                advantages=advantages.repeat_interleave(lengths),
                sequence_ids=torch.arange(len(lengths), device=self.device).repeat_interleave(lengths),
                num_sequences=share.sequences,
                importance_weights=truncated_importance_weights(
                    micro.old_logprobs, micro.engine_logprobs, self.stage.algorithm.importance_cap
                ),
            )
            loss, piece = self.objective.loss(tokens)
            loss.backward()
            pieces.append(piece | {"loss": loss.detach(), "entropy_sum": entropy.detach().sum()})
        return self.updates.step()

    def _summary(self, norms: list[float], pieces: list[Piece]) -> dict[str, float]:
        """Make the step's metrics of the optimiser steps' gradient norms and the micro-batches' sums."""
        names = ("loss", "entropy_sum", "kl_sum", "num_tokens")
        sums = [sum(piece[name].item() for piece in pieces) for name in names]
        sums = sum_over_ranks(torch.tensor(sums, dtype=torch.float64)).tolist()
        total = dict(zip(names, sums, strict=True))
        tokens = max(1.0, total["num_tokens"])
        finite = [norm for norm in norms if math.isfinite(norm)]
        metrics = {
            LOSS: total["loss"] / len(norms),
            ENTROPY: total["entropy_sum"] / tokens,
            KL_OLD_NEW: total["kl_sum"] / tokens,
            GRAD_NORM: sum(finite) / len(finite) if finite else math.nan,
            UPDATE_SKIPPED: float(self.updates.take_skipped()),
        }
        return metrics | self.objective.metrics(pieces, tokens)

    @property
    def weights(self) -> WholeWeights:
        """The present weights as engines take them; every rank iterates over them together."""
        return WholeWeights(self.model)

    @torch.no_grad()
    def score(self, trajectories: Sequence[Trajectory]) -> list[list[float]]:
        """Compute the log-probs of the sampled tokens of each sequence under the present weights.

        Args:
            trajectories: The sequences, the same on every rank; each rank computes them all.
        """
        self.model.eval()
        scores: list[list[float]] = []
        for trajectory in trajectories:
            logprobs, _ = self._logprobs([trajectory])
            scores.append(logprobs.tolist())
        return scores

    def write_checkpoint(self, directory: Path) -> None:
        """Write a checkpoint that loads anywhere, and its training state (call on every rank)."""
        write_weights(self.model, directory)
        save_state(directory, self.model, self.updates.optimizer, self.updates.figures())
        if rank() == 0:
            self.renderer.processor.save_pretrained(directory)
