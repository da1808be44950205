"""A teacher in engines of its own, as a learner knows it: by what it read of every episode."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor

from posttrain.inference.reading import Reading, ReadingError, digest_of
from posttrain.models.divergences import CHUNK
from posttrain.models.logprobs import candidate_logprobs
from posttrain.objectives.distill import TopLogprobs, top_k_jsd
from posttrain.training.core.sharding import reshard
from posttrain.training.on_policy.packed_policy import PackedPolicy
from posttrain.training.on_policy.teacher import FINITE, ITSELF, Taught, check_distance
from posttrain.types import Trajectory


class EngineTeacher:
    """The readings of a teacher, and how far a student is from it: over its likeliest tokens and the rest.

    Args:
        beta: Kind of the divergence (see `top_k_jsd`).
        top: Number of likeliest tokens that it tells of a place.
        device: Where the learner computes.
    """

    def __init__(self, beta: float, top: int, device: torch.device) -> None:
        self._beta, self._top, self._device = beta, top, device
        self._readings: dict[tuple[int, int], Reading] = {}

    def hear(self, trajectories: Sequence[Trajectory], readings: Sequence[Reading | None]) -> None:
        """Take what was read of episodes that are about to be learned, each by its group and number.

        Raises:
            ReadingError: If one is missing, or is not of its episode.
        """
        if len(readings) != len(trajectories):
            raise ReadingError(f"a teacher read {len(readings)} of {len(trajectories)} episodes")
        heard: dict[tuple[int, int], Reading] = {}
        for episode, reading in zip(trajectories, readings, strict=True):
            if reading is None:
                raise ReadingError(f"a teacher did not read episode {episode.episode} of {episode.group}")
            reading.check(episode)
            heard[episode.group, episode.episode] = reading
        if len(heard) != len(trajectories) or len({each.ids.shape[1] for each in heard.values()}) > 1:
            raise ReadingError("what a teacher read has several widths, or two readings are of one episode")
        self._readings = heard

    @contextmanager
    def of(self, trajectories: Sequence[Trajectory]) -> Iterator[Taught]:
        """Give what the teacher read of a row."""
        readings = [self._reading_of(each) for each in trajectories]
        yield taught_by(readings, trajectories, self._beta, self._device)

    def take_seconds(self) -> None:
        """Return nothing: it read before."""

    @torch.no_grad()
    def check(
        self,
        policy: PackedPolicy,
        trajectories: Sequence[Trajectory],
        readings: Sequence[Reading | None] = (),
    ) -> None:
        """Prove that a student that is its own teacher has nothing to learn, and that the teacher reads.

        Every rank calls this with the same sequences.

        Raises:
            ReadingError: As in `hear`.
            TeacherError: If the divergence from itself is not 0 within rounding, or that from the teacher is
                not finite.
        """
        self.hear(trajectories, readings)
        for places in policy.rows(trajectories):
            row = [trajectories[place] for place in places]
            own = taught_by(read_by(policy, row, self._top), row, self._beta, self._device)
            check_distance(policy, row, own, "itself", ITSELF)
            with self.of(row) as taught:
                check_distance(policy, row, taught, "its teacher", FINITE)
        reshard(policy.model)

    def _reading_of(self, episode: Trajectory) -> Reading:
        """Return what was read of an episode; of one that only keeps ranks in step, anything."""
        if episode.group < 0:
            count = sum(episode.sampled)
            width = next((each.ids.shape[1] for each in self._readings.values()), 1)
            nothing = np.full((count, width), -np.inf, np.float32)
            return Reading("", np.zeros((count, width), np.int32), nothing, np.zeros(count, np.float32))
        return self._readings[episode.group, episode.episode]


def taught_by(
    readings: Sequence[Reading], trajectories: Sequence[Trajectory], beta: float, device: torch.device
) -> Taught:
    """Return what readings of a row teach."""
    targets = np.concatenate(
        [np.array(each.token_ids, np.int64)[np.array(each.sampled, bool)] for each in trajectories]
    )
    arrays = (
        targets,
        np.concatenate([each.ids for each in readings]).astype(np.int64),
        np.concatenate([each.logprobs for each in readings]),
        np.concatenate([each.sampled for each in readings]),
    )
    told, ids, logprobs, sampled = (torch.from_numpy(each).to(device) for each in arrays)
    return Taught(sampled, partial(_divergence, (told, ids), (sampled, logprobs), beta))


def _divergence(
    tokens: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], beta: float, hidden: Tensor, weight: Tensor
) -> Tensor:
    """Compute a student's divergences over a teacher's likeliest tokens, the sampled one and the rest.

    Args:
        tokens: [T] the sampled tokens, and [T, K] the likeliest. A sampled one that is among them counts
            once; one that the student's head has not counts among the rest.
        teacher: [T] and [T, K] the teacher's log-probs of these.
        beta: Kind of the divergence.
        hidden: [T, D] the student's last hidden states.
        weight: [V, D] weight of its head.
    """
    (targets, ids), (of_sampled, of_top) = tokens, teacher
    sampled = targets[:, None]
    known = (ids < len(weight)) & (ids != sampled)
    candidates = torch.cat([sampled, torch.where(known, ids, sampled)], 1)
    logprobs = torch.cat([of_sampled[:, None], of_top.masked_fill(~known, -torch.inf)], 1)
    _, student, rest = candidate_logprobs(hidden, weight, targets, candidates, CHUNK)
    return top_k_jsd(TopLogprobs(logprobs, student, rest), beta)


@torch.no_grad()
def read_by(policy: PackedPolicy, row: Sequence[Trajectory], top: int) -> list[Reading]:
    """Have a learner's own model read a row, as engines do."""

    def read(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        head = weight.to(hidden.dtype)
        chunks = [(part @ head.T).float().log_softmax(1) for part in hidden.split(CHUNK)]
        best = [each.topk(min(top, len(weight))) for each in chunks]
        return torch.cat([each.indices for each in best]), torch.cat([each.values for each in best])

    (sampled, _, _), (ids, logprobs) = policy.logprobs_beside(row, read)
    parts = zip(
        row,
        *(each.cpu().split([sum(one.sampled) for one in row]) for each in (ids, logprobs, sampled)),
        strict=True,
    )
    return [
        Reading(digest_of(each), own_ids.int().numpy(), own.numpy(), given.float().numpy())
        for each, own_ids, own, given in parts
    ]
