"""Engines and learners on the same GPUs: the ones sleep while the others work."""

from collections.abc import Iterator
from contextlib import contextmanager

from posttrain.inference.pool import InferencePool
from posttrain.inference.worker import InferenceWorker
from posttrain.training.on_policy.learner_group import LearnerGroup


@contextmanager
def engines_asleep(pool: InferencePool, learners: LearnerGroup) -> Iterator[None]:
    """Have the engines give their GPUs' memory to the learners for the length of a `with` block.

    Args:
        pool: The engines, with nothing in flight.
        learners: They keep weights and moments afterwards, and give back what they computed with.
    """
    pool.on_each(InferenceWorker.sleep)
    try:
        yield
    finally:
        learners.free_memory()
        pool.on_each(InferenceWorker.wake)
