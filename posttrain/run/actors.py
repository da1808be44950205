"""Ray actors with types: a method is named by the function itself, so that editors and checkers follow it."""

from collections.abc import Callable, Mapping
from typing import Concatenate, Generic, ParamSpec, TypeVar

import ray
from ray import ObjectRef
from ray.actor import ActorHandle

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")

#: Concurrency group of the calls that may run beside another one.
WATCH = "watch"


class Actor(Generic[T]):
    """An object that lives in a process of its own.

    It takes no core of the cluster, since engines and learners take turns on the same ones.

    Args:
        kind: The object's class.
        *arguments: Those of the class.
        use_gpu: Whether the process takes a GPU.
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
        environment: Mapping[str, str] | None = None,
        watched: bool = False,
    ) -> None:
        remote = ray.remote
        if watched:
            remote = ray.remote(concurrency_groups={WATCH: 1})  # pyright: ignore[reportCallIssue]
        made = remote(kind).options(
            num_cpus=0,
            num_gpus=1 if use_gpu else 0,
            runtime_env={"env_vars": dict(environment)} if environment else None,
        )
        handle = made.remote(*arguments)
        assert isinstance(handle, ActorHandle)
        self.handle = handle

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
        """End the process at once."""
        ray.kill(self.handle)
