"""Publishing: every engine gets the learners' new weights, and proves that it serves them.

Whole weights go from the learners' first rank to all engines at once, by vLLM's weight transfer. Adapters are
small: their bytes go through Ray's object store. Either way no engine is sampled from before it has scored a
few sequences as the learners do.
"""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import ray
from ray import ObjectRef
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from posttrain.config import OnPolicyStage
from posttrain.files.reading import seconds_to_read
from posttrain.inference.adapters import AdapterFiles
from posttrain.inference.jobs import Taken
from posttrain.inference.weight_transfer import (
    TRANSFER_TIMEOUTS,
    Backend,
    Manifest,
    TransferError,
    TransferGroup,
)
from posttrain.inference.weights import PublishError, Weights
from posttrain.inference.worker import InferenceWorker, Sequences
from posttrain.run.actors import Actor
from posttrain.run.metric_names import PUBLISH_PROOF_GAP, PUBLISH_REPEATED, TIME_PROOF, TIME_PUBLISH
from posttrain.training.on_policy.learner_group import LearnerFailed, LearnerGroup
from posttrain.training.on_policy.proof import Proof, ProofFailed, proof_sequences
from posttrain.types import Trajectory

logger = logging.getLogger(__name__)

R = TypeVar("R")
Workers = Sequence[Actor[InferenceWorker]]
#: What the workers tell that have taken weights, and what became of the others; both by their place.
Delivered = tuple[dict[int, Taken], dict[int, str]]

#: Seconds that an engine may take for an answer beside the limits of the transfer: to end its present step,
#: say. And the slowest that weights may travel, in bytes a second.
GRACE_S, SLOWEST = 30.0, 50e6


class _Lost(Exception):
    """A worker died or does not answer."""


class LearnerLink:
    """The group in which learners send weights to engines; formed anew when other engines are to have them.

    Args:
        learners: The learners.
        backend: How tensors travel.
        timeout: Seconds that joining and each bucket may take.
    """

    def __init__(self, learners: LearnerGroup, backend: Backend, timeout: float) -> None:
        self._learners, self._timeout = learners, timeout
        self._backend: Backend = backend
        self._members: list[Actor[InferenceWorker]] = []
        self._manifest: Manifest | None = None

    def send(
        self, workers: Workers, version: int, proof: Sequences, meanwhile: Callable[[], None]
    ) -> Delivered:
        """Send the learners' present weights to workers, which then score the sequences of a proof.

        Workers that are left with half of them, because another one died or stalled, are sent them again.

        Args:
            workers: The workers.
            version: The version that these weights are.
            proof: The sequences.
            meanwhile: Called once they are sent, while workers take them and score.

        Raises:
            TransferError: If learners and engines are all well, and still cannot reach each other.
        """
        lost: dict[int, str] = {}
        left = list(range(len(workers)))
        taken: dict[int, Taken] = {}
        while left:
            found, errors = self._try([workers[place] for place in left], version, proof, meanwhile)
            if not errors:
                taken = {left[at]: each for at, each in found.items()}
                break
            self._members = []
            gone = {left[at]: str(error) for at, error in errors.items() if isinstance(error, _Lost)}
            if not gone:
                raise next(iter(errors.values()))
            lost |= gone
            left = [place for place in left if place not in gone]
            if left:
                logger.warning("sending version %d again to the other %d workers", version, len(left))
        return taken, lost

    def _try(
        self, workers: Workers, version: int, proof: Sequences, meanwhile: Callable[[], None]
    ) -> tuple[dict[int, Taken], dict[int, Exception]]:
        """Send the weights to workers in one group; return answers and errors by place."""
        if [*map(id, workers)] != [*map(id, self._members)] and (errors := self._form(workers)):
            return {}, errors
        manifest = self._manifest = self._manifest or self._learners.manifest()
        receiving = {
            place: worker.call(InferenceWorker.receive_weights, manifest, version, proof)
            for place, worker in enumerate(workers)
        }
        limit = self._timeout + manifest.num_bytes / SLOWEST

        def send() -> None:
            self._learners.send_weights(manifest, limit)
            meanwhile()

        return self._settle(receiving, send, limit, version)

    def _form(self, workers: Workers) -> dict[int, Exception]:
        """Make a group of the learners' first rank and these workers; return the errors by place."""
        self._members = []
        asked = {place: w.call(InferenceWorker.transfer_ranks) for place, w in enumerate(workers)}
        ranks, errors = _answers(asked, GRACE_S, "telling its ranks")
        if errors:
            return errors
        group = self._learners.open_transfer(self._backend, 1 + sum(ranks.values()), self._timeout)
        first = [1 + sum(ranks[before] for before in range(place)) for place in range(len(workers))]
        joining = {
            place: worker.call(InferenceWorker.join_transfer, group.at(first[place]))
            for place, worker in enumerate(workers)
        }
        _, errors = self._settle(joining, lambda: self._learners.join_transfer(group), self._timeout, None)
        if not errors:
            self._members = list(workers)
        return errors

    def _settle(
        self,
        calls: "Mapping[int, ObjectRef[R]]",
        learners: Callable[[], None],
        limit: float,
        version: int | None,
    ) -> tuple[dict[int, R], dict[int, Exception]]:
        """Have the learners do their part of what workers are doing, and wait for both."""
        doing = "joining the weight transfer" if version is None else f"receiving version {version}"
        failed: TransferError | None = None
        try:
            learners()
        except TransferError as error:
            failed = error  # a worker is the cause, and the others say so as well
        except LearnerFailed as error:  # NCCL waits for a worker that has died
            _, errors = _answers(calls, 1.0, doing)
            told = "; ".join(f"inference worker {place} {each}" for place, each in errors.items())
            raise LearnerFailed(f"{error} ({told or 'every engine has answered'})") from error
        answers, errors = _answers(calls, limit + GRACE_S, doing)
        if failed is not None and not errors:
            raise failed
        return answers, errors


def _answers(
    calls: "Mapping[int, ObjectRef[R]]", limit: float, doing: str
) -> tuple[dict[int, R], dict[int, Exception]]:
    """Wait for workers' answers for a limited time; return answers and errors by place."""
    answers: dict[int, R] = {}
    errors: dict[int, Exception] = {}
    end = time.monotonic() + limit
    for place, call in calls.items():
        try:
            answers[place] = ray.get(call, timeout=max(0.0, end - time.monotonic()))
        except RayTaskError as error:
            if not isinstance(error.cause, TransferError):
                raise (error.cause if isinstance(error.cause, Exception) else error) from None
            errors[place] = error.cause
        except GetTimeoutError:
            errors[place] = _Lost(f"did not answer within {limit:.0f} s while {doing}")
        except RayError as error:
            errors[place] = _Lost(f"died while {doing}: {error}")
    return answers, errors


class _Proved(ABC):
    """Weights that workers take and then prove to serve.

    Attributes:
        version: The version's number.
        proof: What the workers must compute.
        repeated: How often the weights were sent again because a proof failed.
        seconds: Seconds that the slowest worker took to prove them.
        gap: The largest gap that a proof found.
    """

    def __init__(self, version: int, proof: Proof | None) -> None:
        self.version, self.proof = version, proof
        self.repeated, self.seconds, self.gap = 0, 0.0, 0.0

    def bring(self, workers: Workers) -> None:
        """Return once all of these workers serve the version, and have proved it.

        A worker whose proof fails gets the weights once more.

        Raises:
            PublishError: Naming workers that died or stalled; all others serve the version.
            ProofFailed: If a worker computes with other weights although it took these twice.
        """
        wrong, lost = self._prove(workers)
        if wrong:
            logger.warning("publishing version %d again: %s", self.version, _told(wrong))
            self.repeated += 1
            wrong, lost = self._prove(workers)
            if wrong:
                raise ProofFailed(f"version {self.version} was published twice, and {_told(wrong)}")
        if lost:
            raise PublishError(lost)

    @abstractmethod
    def _deliver(self, workers: Workers, proof: Sequences, meanwhile: Callable[[], None]) -> Delivered:
        """Give the weights to workers, which score sequences with them.

        Args:
            workers: The workers.
            proof: The sequences.
            meanwhile: Called while the workers are at it.
        """

    def _prove(self, workers: Workers) -> tuple[dict[int, str], dict[int, str]]:
        """Give the weights to workers; return by place what is wrong with what they compute, and the lost."""
        proof = self.proof
        if proof is None:
            return {}, self._deliver(workers, [], lambda: None)[1]
        taken, lost = self._deliver(workers, proof.sequences, proof.ask_learners)
        self.seconds += max((each.seconds for each in taken.values()), default=0.0)
        self.gap = max([self.gap, *(max(proof.gaps(each.scores).largest) for each in taken.values())])
        failures = {place: proof.failure(each.scores) for place, each in taken.items()}
        return {place: failure for place, failure in failures.items() if failure is not None}, lost


def _told(wrong: Mapping[int, str]) -> str:
    return "; ".join(f"inference worker {place} does not serve it: {what}" for place, what in wrong.items())


class LearnerWeights(_Proved):
    """The whole weights that the learners hold now; they exist until the learners' next update.

    Args:
        link: The way to the engines.
        learners: The learners.
        version: The version's number.
        proof: What engines must compute with them; None asks for no proof.
    """

    def __init__(self, link: LearnerLink, learners: LearnerGroup, version: int, proof: Proof | None) -> None:
        super().__init__(version, proof)
        self._link, self._learners, self._updates = link, learners, learners.updates

    def bring(self, workers: Workers) -> None:
        """Return once all of these workers serve the version, and have proved it; see `Weights`.

        Raises:
            WeightsSuperseded: If the learners have begun another update.
        """
        with self._learners.unchanged(self._updates):
            super().bring(workers)

    def _deliver(self, workers: Workers, proof: Sequences, meanwhile: Callable[[], None]) -> Delivered:
        return self._link.send(workers, self.version, proof, meanwhile)


class AdapterWeights(_Proved):
    """Adapters, whose bytes stay in Ray's object store for as long as this version may be asked for.

    Args:
        files: The adapters.
        base: The checkpoint that they are for.
        version: The version's number.
        proof: What engines must compute with them; None asks for no proof.
    """

    def __init__(self, files: AdapterFiles, base: Path, version: int, proof: Proof | None) -> None:
        super().__init__(version, proof)
        self._files: ObjectRef[AdapterFiles] = ray.put(files)
        self._base, self._layers = base, files.layers

    def _deliver(self, workers: Workers, proof: Sequences, meanwhile: Callable[[], None]) -> Delivered:
        calls = {
            place: worker.call(InferenceWorker.load_adapter, self._files, self._base, self.version, proof)
            for place, worker in enumerate(workers)
        }
        meanwhile()
        limit = 3 * GRACE_S + seconds_to_read(self._base)
        taken, errors = _answers(calls, limit, f"loading the adapters of version {self.version}")
        for place, each in taken.items():
            if each.modules != self._layers:
                raise ProofFailed(
                    f"inference worker {place} applies the adapters of version {self.version} to"
                    f" {each.modules} layers, and {self._layers} are adapted: vLLM does not know all of"
                    " lora.target_modules"
                )
        return taken, {place: str(error) for place, error in errors.items()}


class Pool(Protocol):
    """Engines that weights are published to."""

    def publish(self, weights: Weights) -> None:
        """Return once every worker serves them, or was replaced by one that does."""
        ...


class Publisher:
    """Publishes the learners' weights to a pool of engines.

    Args:
        learners: The learners.
        pool: The engines.
        stage: The stage's settings.
        dtype: Type of the weights.
        use_gpu: Whether learners and engines are on GPUs.
        adapters_of: The checkpoint that engines have and adapters are for, if these are published alone; None
            publishes whole weights, with adapters merged into them.
        shared: Whether they are on the same GPUs.

    Example:
        publisher = Publisher(learners, pool, stage, "bfloat16", use_gpu=True, adapters_of=None)
        publisher.prove_by(trajectories)
        metrics = publisher.publish(version=12)
    """

    def __init__(
        self,
        learners: LearnerGroup,
        pool: Pool,
        stage: OnPolicyStage,
        dtype: str,
        *,
        use_gpu: bool,
        adapters_of: Path | None,
        shared: bool = False,
    ) -> None:
        self._learners, self._pool, self._base = learners, pool, adapters_of
        self._tolerance, self._exact = stage.tolerance(dtype), dtype == "float32"
        backend = TransferGroup.backend_for(use_gpu, shared)
        self._link = LearnerLink(learners, backend, TRANSFER_TIMEOUTS[backend])
        self._sequences: list[Trajectory] = []

    def prove_by(self, trajectories: Sequence[Trajectory]) -> None:
        """Prove the publishes that follow by a few sequences of a batch; by those before if it has none."""
        self._sequences = proof_sequences(trajectories) or self._sequences

    def publish(self, version: int) -> dict[str, float]:
        """Publish the learners' present weights as a version.

        Returns:
            Seconds and gaps.

        Raises:
            ProofFailed: If an engine does not serve them although they were published twice.
        """
        begun = time.monotonic()
        proof = None
        if self._sequences:
            proof = Proof(self._sequences, self._learners.score, self._tolerance, self._exact)
        weights = self._weights(version, proof)
        self._pool.publish(weights)
        if proof is not None:
            proof.ask_learners()  # for an engine that starts once they have gone on; all others are proved
        return {
            TIME_PUBLISH: time.monotonic() - begun - weights.seconds,
            TIME_PROOF: weights.seconds,
            PUBLISH_PROOF_GAP: weights.gap,
            PUBLISH_REPEATED: float(weights.repeated),
        }

    def canary(self, version: int) -> None:
        """Show before the first step that engines notice adapters, alone or merged; the real ones follow.

        These are random: fresh adapters change nothing, so that the proof would hold for an engine that never
        got them.

        Args:
            version: A version of its own.

        Raises:
            ProofFailed: If an engine does not apply them, or not to every layer.
        """
        self._learners.begin_canary()
        try:
            self.publish(version)
        finally:
            self._learners.end_canary()

    def _weights(self, version: int, proof: Proof | None) -> LearnerWeights | AdapterWeights:
        if self._base is not None:
            return AdapterWeights(self._learners.adapter(), self._base, version, proof)
        return LearnerWeights(self._link, self._learners, version, proof)
