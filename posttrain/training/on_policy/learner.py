"""The learner: turns scored trajectories into policy updates.

Each rank has a `Learner`, with the same weights or its part of them. It takes a share of every mini-batch in
packed rows, balanced by tokens, and gradients are summed over the ranks. Losses are sums with global
normalisers, so the number of ranks and of rows changes nothing but the speed.

Every trajectory is run once: the pass that an update is made of also gives the log-probs that it starts
from, and those that the engine's are compared with before anything is learned. Only the mini-batches after
the first need a pass of their own, since the policy has moved when their turn comes.
"""

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from posttrain.config import ModelConfig, OnPolicyStage
from posttrain.inference.reading import Reading
from posttrain.models.lora import is_adapter
from posttrain.objectives.packed import SampledTokens, ratio_metrics, truncated_importance_weights
from posttrain.rendering.collation import prepare
from posttrain.run.metric_names import (
    ENTROPY,
    EPISODE_MASKED,
    GRAD_NORM,
    KL_OLD_NEW,
    LEARNING_RATE,
    LOSS,
    TIME_LEARNER,
    TIME_TEACHER,
    UPDATE_SKIPPED,
)
from posttrain.run.token_figures import Entropies
from posttrain.training.core.checkpoints import load_state, save_state, write_weights
from posttrain.training.core.distributed import rank, sum_over_ranks, world_size
from posttrain.training.core.optimizers import build_optimizer
from posttrain.training.core.policy import Updates
from posttrain.training.core.sharding import reduce_over_replicas
from posttrain.training.core.update_guard import UpdateGuard
from posttrain.training.on_policy.agreement import Agreement, PolicyMismatch, SampledBy, sampled_by
from posttrain.training.on_policy.engine_teacher import EngineTeacher
from posttrain.training.on_policy.frozen_policy import Beside, FrozenPolicy
from posttrain.training.on_policy.objectives import (
    LearnedRow,
    Objective,
    Piece,
    Term,
    normalizer_of,
    objective_of,
)
from posttrain.training.on_policy.packed_policy import PackedPolicy
from posttrain.training.on_policy.rows import ALL, Row, Share, mini_batches, share_of
from posttrain.training.on_policy.teacher import TEACHER_ADAPTER, Teacher, TeacherTerm, load_teacher
from posttrain.training.on_policy.token_classes import TokenClasses
from posttrain.types import Trajectory

CPU = torch.device("cpu")


def _nothing(hidden: Tensor, weight: Tensor) -> None:
    """Compute nothing beside the log-probs."""


class Learner:
    """Model, optimiser and schedule of one rank.

    Args:
        model_config: How to load and freeze the model.
        stage: The stage's settings.
        checkpoint: Where to start from.
        resume: Whether the checkpoint is one of this stage's own; its `state/` is then restored.
        device: Where to train.
        seed: Seed of the first matrix of each new adapter.
        beside: The frozen models that the stage needs; the checkpoint is the reference's if absent.

    Attributes:
        policy: The policy that is trained.
        model: Its model.
        renderer: Its renderer.
        tolerance: Largest gap between engine's and learner's log-probs (see `Agreement`).
        entropies: Of the policy that the last update started from, at the episodes that this rank ran.
    """

    def __init__(
        self,
        model_config: ModelConfig,
        stage: OnPolicyStage,
        checkpoint: Path,
        resume: bool,
        device: torch.device = CPU,
        seed: int = 0,
        beside: Beside | None = None,
    ) -> None:
        self.stage = stage
        self.device = device
        teacher = None if beside is None else beside.teacher
        others = {TEACHER_ADAPTER: teacher} if teacher is not None and is_adapter(teacher) else {}
        self.policy = PackedPolicy(model_config, stage, checkpoint, device, seed, others)
        self.model = self.policy.model
        self.renderer = self.policy.renderer
        self.teacher: Teacher | EngineTeacher | None = None
        if stage.teacher_top_k:
            self.teacher = EngineTeacher(stage.divergence_beta, stage.teacher_top_k, device)
        if teacher is not None:
            frozen = load_teacher(model_config, stage, self.policy, teacher, device)
            self.teacher = Teacher(frozen, stage.divergence_beta, device)
        taught: list[Term] = [] if self.teacher is None else [TeacherTerm()]
        self.objective = objective_of(stage.algorithm, stage.reward_factor, taught)
        self._importance_cap = math.inf if stage.algorithm is None else stage.algorithm.importance_cap
        self._per_sequence = stage.algorithm is not None and stage.algorithm.loss_normalization == "sequence"
        self._reference = self._load_reference(model_config, checkpoint if beside is None else beside.origin)
        self.tolerance = stage.tolerance(model_config.dtype)
        self.entropies: Entropies = {}
        self._classes = TokenClasses(self.renderer.tokenizer)
        self.updates = Updates(
            [self.model],
            build_optimizer([self.model], stage.optimizer, stage.learning_rate, stage.weight_decay),
            partial(_rate, stage),
            UpdateGuard(
                stage.max_skipped_updates,
                "Lower learning_rate, or look for a reward that is not finite in rollouts/",
            ),
            stage.max_grad_norm,
        )
        if resume:
            self.updates.restore(load_state(self.policy.checkpoint, self.model, self.updates.optimizer))

    def _load_reference(self, model_config: ModelConfig, origin: Path) -> FrozenPolicy | None:
        """Load what the policy is to stay near, where the stage has that."""
        if not self.stage.has_reference:
            return None
        if self.stage.lora is not None:
            return FrozenPolicy.base_of(self.policy)
        return FrozenPolicy.load(model_config, self.stage, origin, self.device)

    def update(
        self,
        trajectories: list[Trajectory],
        version: int | None = None,
        readings: Sequence[Reading | None] = (),
    ) -> dict[str, float]:
        """Learn from a rollout batch, one optimiser step for each mini-batch; first compare with the engine.

        Args:
            trajectories: The whole batch, the same on every rank; without a teacher all have an
                advantage. If it is empty (because every reward failed, say) the policy stays as it is.
            version: The policy version of the present weights. Tokens of older versions are no fault of the
                engine, and reported apart. If absent it is the newest version in the batch.
            readings: What a teacher in engines says of each, where the stage has one.

        Returns:
            The step's metrics, the same on every rank.

        Raises:
            PolicyMismatch: If the engine sampled from other weights than these; nothing is learned then.
            ReadingError: If the readings are not of these trajectories.
            NonFiniteUpdates: If `max_skipped_updates` updates in a row were not finite.
        """
        self.entropies = {}
        if not trajectories:
            return {UPDATE_SKIPPED: float(self.stage.updates_per_step)}
        begun = time.perf_counter()
        if self.teacher is not None:
            self.teacher.hear(trajectories, readings)
        shares = self._shares(trajectories)
        prepare([each for share in shares for row in share.rows for each in row.trajectories], self.renderer)
        present = max(max(each.versions) for each in trajectories) if version is None else version
        step = _Step(Agreement(self.tolerance, self.policy.exact), present)
        learned = [share for share in shares if share.rows]
        old = {id(share): [self._old_logprobs(row, step) for row in share.rows] for share in learned[1:]}
        norms: list[float] = []
        metrics: dict[str, float] = {}
        for share in shares:
            known = old.get(id(share))
            self._backward(share, known, step)
            if learned and share is learned[0]:
                metrics = self._agreed(step)
            norms.append(self.updates.step())
        if not learned:
            metrics = self._measured(trajectories, step)
        metrics |= step.summary(norms, self.objective)
        metrics[UPDATE_SKIPPED] = float(self.updates.take_skipped())
        if self.stage.algorithm is not None and self.stage.algorithm.mask_truncated:
            metrics[EPISODE_MASKED] = float(sum(self.objective.masked(each) for each in trajectories))
        metrics[LEARNING_RATE] = self.updates.learning_rate
        seconds = None if self.teacher is None else self.teacher.take_seconds()
        if seconds is not None:
            metrics[TIME_TEACHER] = seconds
        metrics[TIME_LEARNER] = time.perf_counter() - begun
        return metrics

    @torch.no_grad()
    def _measured(self, trajectories: Sequence[Trajectory], step: "_Step") -> dict[str, float]:
        """Compare with the engine where nothing is learned: a row of each rank, and measure its entropy."""
        sums = torch.zeros(2, dtype=torch.float64)
        filler, capacity = _filler(self.renderer.end_token_id), self.stage.batch_tokens
        share = share_of(trajectories, capacity, filler, rank(), world_size(), ALL)
        for row in share.rows[:1]:
            logprobs, entropy, banned = self.policy.logprobs(row.trajectories)
            if row.counts:
                self._observe(row, step, logprobs, entropy, banned)
                sums += torch.tensor([entropy.sum().item(), len(entropy)], dtype=torch.float64)
        total, count = sum_over_ranks(sums).tolist()
        return self._agreed(step) | ({ENTROPY: total / count} if count else {})

    def _shares(self, trajectories: Sequence[Trajectory]) -> list[Share]:
        """Split a batch into mini-batches, and take this rank's share of each."""
        filler = _filler(self.renderer.end_token_id)
        parts = mini_batches(trajectories, self.stage.updates_per_step)
        capacity, counting = self.stage.batch_tokens, self.objective
        return [share_of(part, capacity, filler, rank(), world_size(), counting) for part in parts]

    def _sampled_by(self, row: Row, present: int, banned: Tensor) -> SampledBy:
        """Collect what the engine said of the sampled tokens of a row."""
        tempered = self.stage.rollout.temperature != 1
        return sampled_by(row.trajectories, self._classes, present, banned if tempered else None, self.device)

    def _observe(
        self, row: Row, step: "_Step", logprobs: Tensor, entropy: Tensor, banned: Tensor
    ) -> SampledBy:
        """Compare the policy that a step starts from with the engine, and keep its entropies."""
        engine = self._sampled_by(row, step.present, banned)
        step.agreement.add(logprobs, banned, engine)
        parts = entropy.detach().cpu().split([sum(each.sampled) for each in row.trajectories])
        for each, part in zip(row.trajectories, parts, strict=True):
            self.entropies[each.group, each.episode] = part.numpy().astype(np.float16)
        return engine

    @torch.no_grad()
    def _old_logprobs(self, row: Row, step: "_Step") -> Tensor:
        """Compute the log-probs of a row before the first update of a step."""
        logprobs, entropy, banned = self.policy.logprobs(row.trajectories)
        if row.counts:
            self._observe(row, step, logprobs, entropy, banned)
        return logprobs

    def _agreed(self, step: "_Step") -> dict[str, float]:
        """Compare engine and learner over all rows of the step, before anything is learned."""
        try:
            return step.agreement.judge()
        except PolicyMismatch:
            self.updates.optimizer.zero_grad()
            raise

    def _backward(self, share: Share, old_logprobs: Sequence[Tensor] | None, step: "_Step") -> None:
        """Run this rank's rows of a mini-batch forward and backward.

        Args:
            share: This rank's part of the mini-batch.
            old_logprobs: [T] of each row, the log-probs before the step's first update; None where none has
                been made: they are then those of this pass.
            step: Each row's sums are added to it and, if there were no old log-probs, its tokens.
        """
        for number, row in enumerate(share.rows):
            reduce_over_replicas(self.model, number == len(share.rows) - 1)
            reference = self._reference and self._reference.logprobs(row.trajectories)
            old = None if old_logprobs is None else old_logprobs[number]
            with nullcontext() if self.teacher is None else self.teacher.of(row.trajectories) as taught:
                beside = _nothing if taught is None else taught.divergence
                (logprobs, entropy, banned), divergences = self.policy.logprobs_beside(
                    row.trajectories, beside
                )
                if not row.counts:
                    (0 * logprobs.sum()).backward()
                    continue
                if old is None:
                    engine = self._observe(row, step, logprobs, entropy, banned)
                else:
                    engine = self._sampled_by(row, step.present, banned)
                tokens = self._tokens(row, share, logprobs, old, engine)
                of_teacher = taught and taught.logprobs
                loss, pieces = self.objective.loss(
                    LearnedRow(row.trajectories, tokens, reference, of_teacher, divergences)
                )
                loss.backward()
            told = {"loss": loss.detach(), "entropy_sum": entropy.detach().sum()}
            step.rows.append(told | ratio_metrics(tokens.log_ratios))
            step.pieces.append(pieces)

    def _tokens(
        self, row: Row, share: Share, logprobs: Tensor, old_logprobs: Tensor | None, engine: SampledBy
    ) -> SampledTokens:
        """Collect what the terms of the loss need to know of a row's tokens."""
        old = logprobs.detach() if old_logprobs is None else old_logprobs
        lengths = torch.tensor([sum(each.sampled) for each in row.trajectories], device=self.device)
        advantages = torch.tensor([each.advantage or 0.0 for each in row.trajectories], device=self.device)
        return SampledTokens(
            logprobs=logprobs,
            old_logprobs=old,
            advantages=advantages.repeat_interleave(lengths),
            sequence_ids=torch.arange(len(lengths), device=self.device).repeat_interleave(lengths),
            normalizer=normalizer_of(self.stage, share),
            importance_weights=truncated_importance_weights(old, engine.logprobs, self._importance_cap),
            per_sequence=self._per_sequence,
        )

    def score(self, trajectories: Sequence[Trajectory]) -> list[list[float]]:
        """Compute log-probs with the present weights; see `PackedPolicy.score`."""
        return self.policy.score(trajectories)

    def check_teacher(
        self, trajectories: Sequence[Trajectory], readings: Sequence[Reading | None] = ()
    ) -> None:
        """Prove that the teacher's way is the student's, where there is a teacher; see `Teacher.check`."""
        if self.teacher is not None:
            self.teacher.check(self.policy, trajectories, readings)

    def write_checkpoint(self, directory: Path) -> None:
        """Write a checkpoint that loads anywhere, and its training state (call on every rank)."""
        write_weights(self.model, directory)
        save_state(directory, self.model, self.updates.optimizer, self.updates.figures())
        if rank() == 0:
            self.renderer.processor.save_pretrained(directory)


def _rate(stage: OnPolicyStage, update: int) -> float:
    """Compute the factor of the learning rate: it rises during the warm-up, then the stage's decay."""
    total = stage.max_steps * stage.updates_per_step
    warmup = stage.warmup_steps(stage.max_steps) * stage.updates_per_step
    if update < warmup:
        return (update + 1) / warmup
    progress = (update - warmup) / max(1, total - warmup)
    decays = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + np.cos(np.pi * progress))}
    return float(decays[stage.lr_scheduler_type])


def _filler(end: int) -> Trajectory:
    """Make what a rank runs where others have a row more."""
    return Trajectory("", "", -1, 0, [end, end], [False, True], [0.0, 0.0], [-1, 0], [False, False])


class _Step:
    """What a step collects.

    Args:
        agreement: What is compared with the engine.
        present: The policy version of the weights before the step's first update.

    Attributes:
        rows: The sums of each row of this rank.
        pieces: What the terms of the loss told of each row.
    """

    def __init__(self, agreement: Agreement, present: int) -> None:
        self.agreement = agreement
        self.present = present
        self.rows: list[Piece] = []
        self.pieces: list[list[Piece]] = []

    def summary(self, norms: list[float], objective: Objective) -> dict[str, float]:
        """Make the step's metrics of the optimiser steps' gradient norms and the rows' sums."""
        names = ("loss", "entropy_sum", "kl_sum", "num_tokens")
        sums = [sum(row[name].item() for row in self.rows) for name in names]
        sums = sum_over_ranks(torch.tensor(sums, dtype=torch.float64)).tolist()
        total = dict(zip(names, sums, strict=True))
        finite = [norm for norm in norms if math.isfinite(norm)]
        metrics = {
            LOSS: total["loss"] / len(norms),
            GRAD_NORM: sum(finite) / len(finite) if finite else math.nan,
        }
        if tokens := total["num_tokens"]:  # no group had a signal otherwise
            metrics |= {ENTROPY: total["entropy_sum"] / tokens, KL_OLD_NEW: total["kl_sum"] / tokens}
            metrics |= objective.metrics(self.pieces, tokens)
        return metrics
