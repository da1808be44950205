"""Ray actors with types: a method is named by the function itself, so that editors and checkers follow it."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Concatenate, Generic, ParamSpec, TypeVar

import psutil
import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError

from posttrain.run.placement import Place

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")

#: Concurrency group of the calls that may run beside another one, and how many of them at a time: one that
#: waits for results, and one that looks whether the process is alive.
WATCH, WATCHERS = "watch", 2
#: Seconds in which a process must be gone that Ray has told to end, and one that is killed after that. The
#: driver of a GPU frees tens of GB in a few.
ENDED_S, GONE_S = 5.0, 30.0


class Actor(Generic[T]):
    """An object that lives in a process of its own.

    It takes no core of the cluster, since engines and learners take turns on the same ones.

    Args:
        kind: The object's class.
        *arguments: Those of the class.
        use_gpu: Whether the process takes a GPU.
        place: Where it lives, and how many GPUs it takes there in place of one; None leaves that to Ray.
        environment: Environment variables of the process, beside those of the cluster.
        watched: Whether methods can be called by `watch`. Methods then run in a thread that is not the
            process's main thread.

    Example:
        actor = Actor(InferenceWorker, use_gpu=False)
        version = ray.get(actor.call(InferenceWorker.load_weights, path, 3))
    """

    def __init__(
        self,
        kind: type[T],
        *arguments: object,
        use_gpu: bool,
        place: Place | None = None,
        environment: Mapping[str, str] | None = None,
        watched: bool = False,
    ) -> None:
        remote = ray.remote
        if watched:
            remote = ray.remote(concurrency_groups={WATCH: WATCHERS})  # pyright: ignore[reportCallIssue]
        place = place or Place(gpus=int(use_gpu))
        variables = {**(environment or {}), **place.environment}
        made = remote(kind).options(
            num_cpus=0,
            num_gpus=place.gpus,
            scheduling_strategy=place.strategy,
            runtime_env={"env_vars": variables} if variables else None,
        )
        handle = made.remote(*arguments)
        assert isinstance(handle, ActorHandle)
        self.handle = handle
        self._place: ObjectRef[tuple[str, int]] = handle.__ray_call__.remote(_place)

    def call(
        self, method: Callable[Concatenate[T, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> "ObjectRef[R]":
        """Call a method; calls run one after another, in their order."""
        return getattr(self.handle, method.__name__).remote(*args, **kwargs)

    def watch(
        self, method: Callable[Concatenate[T, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> "ObjectRef[R]":
        """Call a method that runs beside the call that is running."""
        beside = getattr(self.handle, method.__name__).options(concurrency_group=WATCH)
        return beside.remote(*args, **kwargs)

    def kill(self) -> None:
        """End the process at once; return when it is gone, so that its GPU is free."""
        kill_all([self])

    def process(self) -> psutil.Process | None:
        """Return the process, if it runs on this machine and has begun."""
        try:
            node, pid = ray.get(self._place, timeout=0)
            here = node == ray.get_runtime_context().get_node_id()
            return psutil.Process(pid) if here else None
        except (GetTimeoutError, RayError, psutil.NoSuchProcess):
            return None


def kill_all(actors: Sequence[Actor]) -> None:
    """End the processes of actors at once; return when those on this machine are gone.

    Ray only asks a process to end: it returns before the process has, and a stopped one does not hear it.
    Whoever takes the GPU next would find it full.

    Args:
        actors: Also such as have died.
    """
    processes = [process for actor in actors if (process := actor.process()) is not None]
    for actor in actors:
        ray.kill(actor.handle)
    _, left = psutil.wait_procs(processes, timeout=ENDED_S)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    _, left = psutil.wait_procs(left, timeout=GONE_S)
    for process in left:
        logger.warning(
            "process %d was killed %g s ago and is still there; its GPU may not be free", process.pid, GONE_S
        )


def _place(_: object) -> tuple[str, int]:
    """Return the node and the id of the process that this is called in."""
    return ray.get_runtime_context().get_node_id(), os.getpid()
