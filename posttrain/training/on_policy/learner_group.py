"""The learners of all ranks, as Ray actors: started together, called together, waited for with a limit."""

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import ray
import torch
from ray import ObjectRef
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from torch.distributed import TCPStore

from posttrain.config import ModelConfig, RlStage
from posttrain.files.reading import seconds_to_read
from posttrain.models.load import loaded_type
from posttrain.models.precision import keep_float32_exact
from posttrain.run.actors import Actor, kill_all
from posttrain.training.core.distributed import training_device
from posttrain.training.core.rendezvous import Rendezvous, join_group, open_store
from posttrain.training.on_policy.learner import Learner
from posttrain.training.on_policy.weight_sync import make_folder
from posttrain.types import Trajectory

R = TypeVar("R")

#: Seconds that a learner may take to start, beside the time in which a slow disk reads its checkpoint; and to
#: do one step or save.
START_TIMEOUT = 600
STEP_TIMEOUT = 3600
COLLECTIVE_TIMEOUT = timedelta(minutes=10)


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
        self, place: Rendezvous, config: ModelConfig, stage: RlStage, checkpoint: Path, resume: bool
    ) -> None:
        """Join the group and load the checkpoint."""
        if config.dtype == "float32":
            keep_float32_exact()
        if self._of > 1:
            join_group(
                *(place, self._index, self._of),
                use_gpu=self._device.type == "cuda",
                timeout=COLLECTIVE_TIMEOUT,
                own=self._store,
            )
        self._learner = Learner(config, stage, checkpoint, resume, self._device)

    def update(self, trajectories: "list[Trajectory] | ObjectRef[list[Trajectory]]") -> dict[str, float]:
        """Learn from a rollout batch; see `Learner.update`. Ray replaces the reference by the batch."""
        assert isinstance(trajectories, list)
        return self._learner.update(trajectories)

    def make_folder(self, scratch: Path) -> Path:
        """Make the folder for the weights; see `make_folder`."""
        model = self._learner.model
        values = sum(parameter.numel() for parameter in model.parameters())  # of all shards together
        return make_folder(values * loaded_type(model).itemsize, scratch)

    def write_weights(self, directory: Path) -> None:
        """Write the weights alone; see `Learner.write_weights`."""
        self._learner.write_weights(directory)

    def write_checkpoint(self, directory: Path) -> None:
        """Write a checkpoint; see `Learner.write_checkpoint`."""
        self._learner.write_checkpoint(directory)


class LearnerGroup:
    """The learners of all ranks.

    Args:
        config: How to load and freeze the model.
        stage: The RL stage's settings.
        checkpoint: Where to start from.
        resume: Whether the checkpoint is one of this stage's own.
        use_gpu: Whether each learner takes a GPU.
    """

    def __init__(
        self, config: ModelConfig, stage: RlStage, checkpoint: Path, *, resume: bool, use_gpu: bool
    ) -> None:
        count = stage.num_workers
        self._actors = [Actor(LearnerActor, index, count, use_gpu, use_gpu=use_gpu) for index in range(count)]
        place = self._wait([self._actors[0].call(LearnerActor.open_store)], START_TIMEOUT)[0]
        begun = [
            actor.call(LearnerActor.start, place, config, stage, checkpoint, resume)
            for actor in self._actors
        ]
        self._wait(begun, START_TIMEOUT + seconds_to_read(checkpoint))

    def update(self, trajectories: Sequence[Trajectory]) -> dict[str, float]:
        """Learn from a rollout batch; see `Learner.update`."""
        batch = ray.put(list(trajectories))  # once, and not once a rank
        return self._wait([actor.call(LearnerActor.update, batch) for actor in self._actors], STEP_TIMEOUT)[0]

    def make_folder(self, scratch: Path) -> Path:
        """Make the folder for the weights on the machine that writes them; see `make_folder`."""
        return self._wait([self._actors[0].call(LearnerActor.make_folder, scratch)], START_TIMEOUT)[0]

    def write_weights(self, directory: Path) -> None:
        """Write the weights alone, for the engines; every rank has its part in it."""
        self._wait(
            [actor.call(LearnerActor.write_weights, directory) for actor in self._actors], STEP_TIMEOUT
        )

    def write_checkpoint(self, directory: Path) -> None:
        """Write a checkpoint with its training state."""
        calls = [actor.call(LearnerActor.write_checkpoint, directory) for actor in self._actors]
        self._wait(calls, STEP_TIMEOUT)

    def close(self) -> None:
        """End the processes; return when they are gone."""
        kill_all(self._actors)

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
                " per_device_batch_size. Go on with --resume"
            ) from error
