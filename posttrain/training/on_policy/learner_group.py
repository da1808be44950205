"""The learners of all ranks, as Ray actors: started together, called together, waited for with a limit."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import ray
import torch
from ray import ObjectRef
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from posttrain.config import ModelConfig, OnPolicyStage
from posttrain.files.reading import seconds_to_read
from posttrain.inference.adapters import AdapterFiles
from posttrain.inference.reading import Reading
from posttrain.inference.weight_transfer import Backend, Manifest, TransferGroup
from posttrain.inference.weights import WeightsSuperseded
from posttrain.models.precision import keep_float32_exact
from posttrain.run.actors import Actor, kill_all
from posttrain.run.home import fetch_files, writing_home
from posttrain.run.placement import Placement, place_of_process
from posttrain.run.token_figures import Entropies
from posttrain.training.core.distributed import training_device
from posttrain.training.core.rendezvous import Rendezvous, join_group, open_store
from posttrain.training.on_policy.frozen_policy import Beside
from posttrain.training.on_policy.learner import Learner
from posttrain.training.on_policy.proof import prompt_sequences
from posttrain.training.on_policy.sending import WeightSource
from posttrain.types import Sample, Trajectory

R = TypeVar("R")
P = ParamSpec("P")

#: Seconds that a learner may take to start, beside the time in which a slow disk reads its checkpoint; and to
#: do one step or save.
START_TIMEOUT = 600
STEP_TIMEOUT = 3600
COLLECTIVE_TIMEOUT = timedelta(minutes=10)


#: Episodes, and what a teacher in engines says of each.
Batch = tuple[list[Trajectory], Sequence[Reading | None]]


class LearnerFailed(RuntimeError):
    """A learner died or overran its time."""


class LearnerActor:
    """One rank's process: it joins the process group, then forwards to its `Learner`.

    Args:
        index: The rank.
        of: Number of ranks.
        use_gpu: Whether the learner trains on the GPU that Ray gave it.
    """

    def __init__(self, index: int, of: int, use_gpu: bool = False) -> None:
        torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
        self._index, self._of, self._device = index, of, training_device(use_gpu)
        self._store: TCPStore | None = None

    def open_store(self) -> Rendezvous:
        """Open the store at which the ranks meet; the first rank does."""
        self._store, place = open_store(COLLECTIVE_TIMEOUT)
        return place

    def start(
        self,
        place: Rendezvous,
        config: ModelConfig,
        stage: OnPolicyStage,
        checkpoint: Path,
        resume: bool,
        seed: int,
        beside: Beside | None = None,
    ) -> None:
        """Join the group and load the checkpoint, and the weights that the stage started from."""
        if config.dtype == "float32":
            keep_float32_exact()
        if self._of > 1:
            join_group(
                *(place, self._index, self._of),
                use_gpu=self._device.type == "cuda",
                timeout=COLLECTIVE_TIMEOUT,
                own=self._store,
            )
        self._learner = Learner(config, stage, checkpoint, resume, self._device, seed, beside)
        self._source = WeightSource(self._learner.model)

    def update(
        self, batch: "Batch | ObjectRef[Batch]", version: int | None
    ) -> tuple[dict[str, float], Entropies]:
        """Learn from a rollout batch; see `Learner.update`. Ray replaces the reference by the batch."""
        trajectories, readings = _fetched(batch)
        return self._learner.update(trajectories, version, readings), self._learner.entropies

    def source(
        self, method: Callable[Concatenate[WeightSource, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Call a method of the weights' source; see `WeightSource`."""
        return method(self._source, *args, **kwargs)

    def score(self, trajectories: "list[Trajectory] | ObjectRef[list[Trajectory]]") -> list[list[float]]:
        """Compute log-probs; see `Learner.score`."""
        assert isinstance(trajectories, list)
        fetch_files(Path(image.ref.path) for trajectory in trajectories for image in trajectory.images)
        return self._learner.score(trajectories)

    def prompt_sequences(self, samples: Sequence[Sample]) -> list[Trajectory]:
        """Make sequences of prompts alone; see `proof.prompt_sequences`."""
        return prompt_sequences(samples, self._learner.renderer)

    def check_teacher(self, batch: "Batch | ObjectRef[Batch]") -> None:
        """Prove the teacher's way; see `Learner.check_teacher`."""
        self._learner.check_teacher(*_fetched(batch))

    def place(self) -> str:
        """Tell on which node, and on which of its GPUs, the learner lives."""
        return place_of_process()

    def free_memory(self) -> None:
        """Give the GPU's memory back that the last update computed with."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def write_checkpoint(self, directory: Path) -> None:
        """Write a checkpoint; see `Learner.write_checkpoint`. It is there on the home node afterwards."""
        with writing_home(directory):
            self._learner.write_checkpoint(directory)


def _fetched(batch: "Batch | ObjectRef[Batch]") -> Batch:
    """Return a batch that Ray has put in the place of its reference, with its images on this node."""
    assert isinstance(batch, tuple)
    fetch_files(Path(image.ref.path) for trajectory in batch[0] for image in trajectory.images)
    return batch


class LearnerGroup:
    """The learners of all ranks.

    Args:
        config: How to load and freeze the model.
        stage: The stage's settings.
        checkpoint: Where to start from.
        resume: Whether the checkpoint is one of this stage's own.
        use_gpu: Whether each learner takes a GPU.
        placement: Says where they live; None leaves that to Ray.
        seed: Seed of new adapters.
        beside: The frozen models that the stage needs; the checkpoint is the reference's if absent.
    """

    def __init__(
        self,
        config: ModelConfig,
        stage: OnPolicyStage,
        checkpoint: Path,
        *,
        resume: bool,
        use_gpu: bool,
        placement: Placement | None = None,
        seed: int = 0,
        beside: Beside | None = None,
    ) -> None:
        count = stage.num_workers
        beside = beside or Beside(checkpoint)
        self._order = threading.RLock()
        self._updates = 0
        self._entropies: Entropies = {}
        self._looks: list[ObjectRef[str]] = []
        self._placement = placement
        self._whole = stage.sharding == "none"  # each rank holds all weights
        places = placement.learners(count) if placement is not None else [None] * count
        self._actors = [
            Actor(LearnerActor, index, count, use_gpu, use_gpu=use_gpu, place=place)
            for index, place in enumerate(places)
        ]
        try:
            place = self._wait([self._actors[0].call(LearnerActor.open_store)], START_TIMEOUT)[0]
            begun = [
                actor.call(LearnerActor.start, place, config, stage, checkpoint, resume, seed, beside)
                for actor in self._actors
            ]
            reading = seconds_to_read(checkpoint)
            if beside.teacher is not None:
                reading += seconds_to_read(beside.teacher)
            self._wait(begun, START_TIMEOUT + reading)
        except BaseException:  # also where the run is ended while they start
            self.close()
            raise

    @property
    def updates(self) -> int:
        """Number of updates that have been begun."""
        return self._updates

    @contextmanager
    def unchanged(self, updates: int) -> Iterator[None]:
        """Keep the learners from updating their weights within this context; also from another thread.

        Args:
            updates: The number of updates after which the weights are meant.

        Raises:
            WeightsSuperseded: If another update has been begun.
        """
        with self._order:
            if self._updates != updates:
                raise WeightsSuperseded(f"the learners have gone on from the weights of update {updates}")
            yield

    def update(
        self,
        trajectories: Sequence[Trajectory],
        version: int | None = None,
        readings: Sequence[Reading | None] = (),
    ) -> dict[str, float]:
        """Learn from a rollout batch; see `Learner.update`."""
        batch = ray.put((list(trajectories), readings))  # once, and not once a rank
        with self._order:
            self._updates += 1
            calls = self._every(LearnerActor.update, batch, version)
        told = self._wait(calls, STEP_TIMEOUT)
        self._entropies = {key: values for _, entropies in told for key, values in entropies.items()}
        return told[0][0]

    def entropies(self) -> Entropies:
        """Return the entropies at the sampled tokens of the last update, of episodes that were run."""
        return self._entropies

    def check(self) -> None:
        """Notice a learner that died while nobody waits for it; return at once.

        Raises:
            LearnerFailed: If one has died.
        """
        # Not by `_every`: while weights are brought to a new engine, no other call may be made in order.
        looks = self._looks or [actor.call(LearnerActor.place) for actor in self._actors]
        answered, self._looks = ray.wait(looks, num_returns=len(looks), timeout=0)
        self._wait(answered, STEP_TIMEOUT)

    def score(self, trajectories: Sequence[Trajectory]) -> list[list[float]]:
        """Compute the log-probs of sampled tokens under the present weights; see `Learner.score`."""
        batch = ray.put(list(trajectories))
        if self._whole:
            return self._first(LearnerActor.score, batch)
        return self._wait(self._every(LearnerActor.score, batch), STEP_TIMEOUT)[0]

    def prompt_sequences(self, samples: Sequence[Sample]) -> list[Trajectory]:
        """Make sequences of prompts alone; see `proof.prompt_sequences`."""
        return self._first(LearnerActor.prompt_sequences, samples)

    def check_teacher(
        self, trajectories: Sequence[Trajectory], readings: Sequence[Reading | None] = ()
    ) -> None:
        """Prove by a few sequences that the teacher's way is the student's; see `Learner.check_teacher`."""
        batch = ray.put((list(trajectories), readings))
        self._wait(self._every(LearnerActor.check_teacher, batch), STEP_TIMEOUT)

    def manifest(self) -> Manifest:
        """Describe the weights that `send_weights` sends."""
        return self._first(LearnerActor.source, WeightSource.manifest)

    def open_transfer(self, backend: Backend, size: int, timeout: float) -> TransferGroup:
        """Open a group in which the first rank sends weights; see `WeightSource.open`."""
        return self._first(LearnerActor.source, WeightSource.open, backend, size, timeout)

    def join_transfer(self, group: TransferGroup) -> None:
        """Wait until every engine has joined the group; see `WeightSource.join`."""
        self._wait(self._every(LearnerActor.source, WeightSource.join, group), STEP_TIMEOUT)

    def send_weights(self, manifest: Manifest, timeout: float) -> None:
        """Send the present weights; every rank has its part in it.

        Raises:
            TransferError: If an engine died or stalled.
            LearnerFailed: If a learner did not answer within the time.
        """
        self._wait(self._every(LearnerActor.source, WeightSource.send, manifest), timeout)

    def adapter(self) -> AdapterFiles:
        """Gather the present adapters."""
        files = self._wait(self._every(LearnerActor.source, WeightSource.adapter), STEP_TIMEOUT)[0]
        assert files is not None
        return files

    def begin_canary(self) -> int:
        """Give the adapters random values; return the number of adapted layers."""
        return self._changing(WeightSource.begin_canary)

    def end_canary(self) -> None:
        """Give the adapters their own values back."""
        self._changing(WeightSource.end_canary)

    def places(self) -> list[str]:
        """Tell where each learner lives, by rank."""
        return self._wait(self._every(LearnerActor.place), STEP_TIMEOUT)

    def free_memory(self) -> None:
        """Give the GPUs' memory back that the last update computed with."""
        self._wait(self._every(LearnerActor.free_memory), STEP_TIMEOUT)

    def write_checkpoint(self, directory: Path) -> None:
        """Write a checkpoint with its training state."""
        self._wait(self._every(LearnerActor.write_checkpoint, directory), STEP_TIMEOUT)

    def close(self) -> None:
        """End the processes; return when they are gone."""
        with self._order:
            self._updates += 1  # nobody can have their weights any more
        kill_all(self._actors)
        if self._placement is not None:
            self._placement.release_learners()

    def _changing(self, method: Callable[[WeightSource], R]) -> R:
        """Call a method of every rank's source that changes the weights; those before are then no more."""
        with self._order:
            self._updates += 1
            calls = self._every(LearnerActor.source, method)
        return self._wait(calls, STEP_TIMEOUT)[0]

    def _every(
        self, method: Callable[Concatenate[LearnerActor, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> "list[ObjectRef[R]]":
        """Call a method of every rank: each gets the calls of all threads in the same order."""
        with self._order:
            return [actor.call(method, *args, **kwargs) for actor in self._actors]

    def _first(
        self, method: Callable[Concatenate[LearnerActor, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Call a method of the first rank, and wait for its result."""
        return self._wait([self._actors[0].call(method, *args, **kwargs)], STEP_TIMEOUT)[0]

    def _wait(self, calls: "list[ObjectRef[R]]", timeout: float) -> list[R]:
        """Wait for calls to one or all ranks, and return their results.

        Raises:
            LearnerFailed: If a learner died or overran its time.
            Exception: The exception that a learner raised itself.
        """
        try:
            return ray.get(calls, timeout=timeout)
        except RayTaskError as error:
            raise error.cause from None
        except GetTimeoutError as error:
            raise LearnerFailed(
                f"a learner did not answer within {timeout:.0f} s; go on with --resume"
            ) from error
        except RayActorError as error:
            raise LearnerFailed(
                f"a learner's process died ({error}); out of memory is the usual cause: lower"
                " rollout.max_length, or remove max_batch_tokens. Go on with --resume"
            ) from error
