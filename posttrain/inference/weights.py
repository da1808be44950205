"""Weights of a version, and how they come to the workers that serve them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from posttrain.files.reading import seconds_to_read
from posttrain.inference.worker import InferenceWorker
from posttrain.run.actors import Actor

#: Seconds that workers may take to load new weights, beside the time to read them.
LOAD_S = 120.0


class PublishError(RuntimeError):
    """Workers do not serve the weights that were to be brought to them.

    Attributes:
        reasons: Why, by the worker's index in what `Weights.bring` was given: what it did not do, in words
            that follow the worker's name.
    """

    def __init__(self, reasons: Mapping[int, str]) -> None:
        super().__init__("; ".join(f"worker {index} {reason}" for index, reason in sorted(reasons.items())))
        self.reasons = dict(reasons)


class WeightsSuperseded(RuntimeError):
    """The learners have gone on from these weights, so nobody can have them; newer ones will come."""


class Weights(Protocol):
    """Weights that a pool's workers are to serve."""

    @property
    def version(self) -> int:
        """The policy version that these weights are."""
        ...

    def bring(self, workers: Sequence[Actor[InferenceWorker]]) -> None:
        """Return once all these workers serve them; also called for one that replaces another, later on.

        Raises:
            PublishError: Within a limited time, naming every worker that does not serve them.
            WeightsSuperseded: If they are no more; the worker must wait for those that are published next.
        """
        ...


@dataclass(frozen=True)
class CheckpointWeights:
    """A checkpoint in a folder that every worker can read.

    Attributes:
        path: The folder. It must stay as long as these weights are the newest: workers that are replaced load
            them.
        version: The policy version that these weights are.
        timeout: Seconds that loading them may take, beside the time to read them from a slow disk.
    """

    path: Path
    version: int
    timeout: float = LOAD_S

    def bring(self, workers: Sequence[Actor[InferenceWorker]]) -> None:
        """Have workers load the checkpoint; see `Weights.bring`."""
        answers = [worker.call(InferenceWorker.load_weights, self.path, self.version) for worker in workers]
        limit = self.timeout + seconds_to_read(self.path)
        doing = f"while loading version {self.version} from {self.path}"
        deadline = time.monotonic() + limit
        reasons: dict[int, str] = {}
        for index, answer in enumerate(answers):
            try:
                served = ray.get(answer, timeout=max(0.0, deadline - time.monotonic()))
                if served != self.version:
                    reasons[index] = f"serves version {served} after it was to load version {self.version}"
            except GetTimeoutError:
                reasons[index] = f"did not answer within {limit:.0f} s {doing}"
            except RayTaskError as error:
                reasons[index] = f"failed {doing}: {error.cause}"
            except RayError as error:
                reasons[index] = f"died {doing}: {error}"
        if reasons:
            raise PublishError(reasons)
