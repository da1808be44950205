"""A teacher in the learners: its distribution over the whole vocabulary, at every token that was sampled."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from posttrain.config import ModelConfig, OnPolicyStage
from posttrain.inference.reading import Reading
from posttrain.models.divergences import generalized_jsd
from posttrain.models.lora import base_named_by, is_adapter
from posttrain.run.metric_names import DIVERGENCE_TEACHER, KL_TEACHER
from posttrain.training.core.distributed import max_over_ranks, sum_over_ranks
from posttrain.training.core.sharding import reshard
from posttrain.training.on_policy.frozen_policy import FrozenPolicy, LastStates
from posttrain.training.on_policy.objectives import LearnedRow, Piece
from posttrain.training.on_policy.packed_policy import PackedPolicy
from posttrain.types import Trajectory

#: Name of a teacher that is an adapter of the student's own base.
TEACHER_ADAPTER = "teacher"
#: Largest divergence of a model from itself that rounding explains, in nats a token; and of any.
ITSELF, FINITE = 1e-4, float("inf")


class TeacherError(RuntimeError):
    """A teacher cannot be learned from; the message says why."""


@dataclass(frozen=True)
class Taught:
    """What a teacher says of a row.

    Attributes:
        logprobs: [T] its log-probs of the sampled tokens.
        divergence: Computes the divergences [T] from the student's last hidden states and its head's weight.
    """

    logprobs: Tensor
    divergence: Callable[[Tensor, Tensor], Tensor]


class Teacher:
    """A frozen model, and how far a student is from it.

    Args:
        frozen: The model.
        beta: Kind of the divergence (see `generalized_jsd`).
        device: Where it computes.
    """

    def __init__(self, frozen: FrozenPolicy, beta: float, device: torch.device) -> None:
        self._frozen = frozen
        self._beta = beta
        self._device = device
        self._seconds = 0.0

    @contextmanager
    def of(self, trajectories: Sequence[Trajectory]) -> Iterator[Taught]:
        """Let the teacher read a row; what it says holds until the row has gone backward."""
        begun = self._now()
        with self._frozen.states(trajectories) as states:
            self._seconds += self._now() - begun
            yield Taught(states.logprobs, partial(_divergence, states, self._beta))

    def hear(self, trajectories: Sequence[Trajectory], readings: Sequence[Reading | None]) -> None:
        """Take nothing: the teacher reads each row itself."""

    def take_seconds(self) -> float | None:
        """Return how long the teacher has read since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    @torch.no_grad()
    def check(
        self,
        policy: PackedPolicy,
        trajectories: Sequence[Trajectory],
        readings: Sequence[Reading | None] = (),
    ) -> None:
        """Prove that what the teacher says of a student that is its teacher is nothing.

        The student reads a few sequences twice, once as its own teacher on the way that the teacher takes.
        Every rank calls this with the same sequences.

        Raises:
            TeacherError: If the divergence is not 0 within rounding, or the teacher's own is not finite.
        """
        itself = Teacher(FrozenPolicy(policy), self._beta, self._device)
        for places in policy.rows(trajectories):
            row = [trajectories[place] for place in places]
            for teacher, kind, limit in ((itself, "itself", ITSELF), (self, "its teacher", FINITE)):
                with teacher.of(row) as taught:
                    check_distance(policy, row, taught, kind, limit)
        reshard(policy.model)
        self.take_seconds()

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def check_distance(
    policy: PackedPolicy, row: Sequence[Trajectory], taught: Taught, kind: str, limit: float
) -> None:
    """Check that a student's largest divergence from a teacher is below a limit, on every rank.

    Raises:
        TeacherError: If it is not, or is no number.
    """
    _, divergences = policy.logprobs_beside(row, taught.divergence)
    [largest] = max_over_ranks(divergences.abs().max().cpu().double()[None]).tolist()
    if not largest < limit:
        raise TeacherError(
            f"a student's divergence from {kind} is {largest:.2e} at a token, and should be "
            + ("finite" if limit == FINITE else "0 within rounding")
        )


def _divergence(states: LastStates, beta: float, hidden: Tensor, weight: Tensor) -> Tensor:
    """Compute the divergences of a student from its teacher's states."""
    return generalized_jsd(hidden, weight, states.hidden, states.head, beta)


class TeacherTerm:
    """The divergence from a teacher, at every sampled token of every episode."""

    def teaches(self, episode: Trajectory) -> bool:
        """Tell that every episode has a teacher's word, whatever its reward."""
        return True

    def loss(self, row: LearnedRow) -> tuple[Tensor, Piece]:
        """Compute a row's share, and sums of divergences and of the gaps between the models' log-probs."""
        assert row.divergences is not None
        assert row.teacher_logprobs is not None
        gaps = row.tokens.logprobs.detach() - row.teacher_logprobs
        told = {"divergence_sum": row.divergences.detach().sum(), "gap_sum": gaps.sum()}
        return row.tokens.mean(row.divergences), told

    def metrics(self, pieces: Sequence[Piece], num_tokens: float) -> dict[str, float]:
        """Compute means over the step's tokens: of the divergence, and of the reverse KL's estimate (k1)."""
        names = ("divergence_sum", "gap_sum")
        sums = [sum(piece[name].item() for piece in pieces) for name in names]
        divergence, gap = sum_over_ranks(torch.tensor(sums, dtype=torch.float64)).tolist()
        return {DIVERGENCE_TEACHER: divergence / num_tokens, KL_TEACHER: gap / num_tokens}


def shares_base(teacher: Path, base: Path) -> bool:
    """Tell whether a teacher is a base, or an adapter of it."""
    return teacher == base or (is_adapter(teacher) and Path(base_named_by(teacher)) == base)


def load_teacher(
    model_config: ModelConfig,
    stage: OnPolicyStage,
    policy: PackedPolicy,
    checkpoint: Path,
    device: torch.device,
) -> FrozenPolicy:
    """Load a teacher; of adapters' base, or another adapter of it, no copy is made.

    Args:
        model_config: How the run's models compute.
        stage: The stage's settings.
        policy: The student, which has loaded the teacher's adapter where there is one (see `shares_base`).
        checkpoint: The teacher.
        device: Where to compute.
    """
    if stage.lora is None or not shares_base(checkpoint, policy.base):
        return FrozenPolicy.load(model_config, stage, checkpoint, device)
    if checkpoint == policy.base:
        return FrozenPolicy.base_of(policy)
    return FrozenPolicy.adapter_of(policy, TEACHER_ADAPTER)
