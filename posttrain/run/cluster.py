"""The Ray cluster that a run's stages share: started on this machine, or joined."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import ray

from posttrain.gpus import VISIBLE, visible_gpus
from posttrain.run.home import serving_home

#: Threads that wait by sleeping. Spinning ones ran up to ten times slower when a machine gave less
#: than whole cores. One thread a process: stages take more cores by taking more workers.
WORKER_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # the end of a stage is noticed no later than this
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
#: For processes that use GPUs: rows of changing lengths would leave holes in the memory of a full card.
GPU_ENVIRONMENT = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
#: Variables of this process that the processes on every node of a joined cluster get, by the beginnings of
#: their names: of the Hugging Face hub (its token too), of NCCL and gloo, of vLLM, and those of proxies.
FORWARDED = ("HF_", "NCCL_", "GLOO_", "TORCH_NCCL_", "VLLM_", "POSTTRAIN_CACHE", "HTTP_PROXY", "HTTPS_PROXY")
FORWARDED += ("NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
#: For processes that are not to use GPUs: Ray leaves them visible to whoever takes none of them.
CPU_ENVIRONMENT = {VISIBLE: ""}


#: What a cluster asks of everybody who joins it.
_HOW_TO_JOIN = (
    "Look whether it runs there (`ray status`), and whether it is the same version of Ray. A cluster beyond"
    " this machine asks for its token: make one by `ray get-auth-token --generate`, copy ~/.ray/auth_token to"
    " every node and to this machine (or set RAY_AUTH_TOKEN), and set RAY_AUTH_MODE=token for `ray start` and"
    " here"
)


class ClusterError(RuntimeError):
    """Ray could not be started or reached."""


@contextmanager
def cluster(
    *,
    num_cpus: int | None,
    num_gpus: int | None,
    object_store_mb: int,
    address: str | None,
    environment: Sequence[str] = (),
) -> Iterator[int]:
    """Start a local Ray cluster, or join one, for the length of a `with` block; yield how many GPUs to use.

    Where that is none, GPUs are hidden from this process and from all that it starts.

    Args:
        num_cpus: Cores to announce to Ray; all of the machine's where None.
        num_gpus: GPUs to use; where None, those that this process sees, or that the joined cluster has.
        object_store_mb: Shared memory for objects in flight, in MiB.
        address: An existing cluster's address; None starts one on this machine.
        environment: Names of variables that a joined cluster's processes get besides `FORWARDED`.

    Raises:
        ClusterError: If Ray does not start, a variable is not set, or the cluster has fewer GPUs; the message
            says what to look at.
    """
    if num_gpus is None and not address:
        num_gpus = len(visible_gpus())
    told = forwarded(environment) if address else {}
    start = partial(_join, address, told) if address else partial(_start, num_cpus, num_gpus, object_store_mb)
    with ExitStack() as stack:
        stack.enter_context(_running(start, worker_environment(num_gpus)))
        offered = _offered(num_gpus)
        if (
            num_gpus is None and not offered
        ):  # joined, to find that there is none: whatever there is, is hidden
            stack.pop_all().close()
            stack.enter_context(_running(start, worker_environment(0)))
        if address:
            stack.enter_context(serving_home())
        yield offered


def worker_environment(num_gpus: int | None) -> dict[str, str]:
    """Return the environment variables of a run's processes; None is a number that is not known yet."""
    return WORKER_ENVIRONMENT | (CPU_ENVIRONMENT if num_gpus == 0 else GPU_ENVIRONMENT)


def forwarded(names: Sequence[str] = ()) -> dict[str, str]:
    """Return the variables of this process that go to the processes on every node.

    Args:
        names: Of variables besides those of `FORWARDED`.

    Raises:
        ClusterError: If one of the names is not set here.
    """
    if missing := [name for name in names if name not in os.environ]:
        raise ClusterError(
            f"cluster.environment names {missing[0]}, which is not set here: set it, or remove the name"
        )
    return {name: value for name, value in os.environ.items() if name.startswith(FORWARDED) or name in names}


@contextmanager
def _running(start: Callable[[dict[str, str]], None], environment: dict[str, str]) -> Iterator[None]:
    """Start or join a cluster for the length of a `with` block, in an environment that its processes share.

    Raises:
        ClusterError: If Ray does not start.
    """
    with _set(environment):
        handler = signal.getsignal(signal.SIGTERM)
        try:
            start(environment)
        except ClusterError:
            raise
        except SystemExit:  # Ray's answer to SIGTERM, after it has ended its processes
            signal.signal(signal.SIGTERM, handler)
            signal.raise_signal(signal.SIGTERM)
            raise
        except Exception as error:  # Ray raises the bare class where its processes do not come up in time
            raise ClusterError(
                f"Ray did not start ({error}). Look at `posttrain doctor`: shared memory, free memory and a"
                " machine that is busy with other work are the usual causes. A running cluster is joined by"
                " cluster.address"
            ) from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray has put one in its place that leaves everything open
        try:
            yield
        finally:
            ray.shutdown()


def _start(
    num_cpus: int | None, num_gpus: int | None, object_store_mb: int, _inherited: dict[str, str]
) -> None:
    """Start a cluster on this machine: its processes start faster where Ray has no environment to set."""
    # The only node is not taken away while the run goes on.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    ray.init(
        address="local",
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        object_store_memory=object_store_mb * 2**20,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,  # workers report through the run's files, their output stays in Ray's folder
    )


def _join(address: str, told: dict[str, str], environment: dict[str, str]) -> None:
    """Join a cluster, whose processes are told the environment.

    Raises:
        ClusterError: If it cannot be joined.
    """
    # Variables of a job that `posttrain submit` started are this process's own, and mean the same again.
    os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] = "1"
    try:
        ray.init(
            address=address,
            runtime_env={"env_vars": told | environment},
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except Exception as error:
        raise ClusterError(f"the cluster at {address} cannot be joined ({error}). {_HOW_TO_JOIN}") from error


@contextmanager
def _set(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the length of a `with` block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _offered(asked: int | None) -> int:
    """Return how many GPUs of the cluster are to be used.

    Raises:
        ClusterError: If more are asked for than there are.
    """
    there = int(ray.cluster_resources().get("GPU", 0))
    if asked is not None and asked > there:
        raise ClusterError(
            f"cluster.num_gpus is {asked}, and the cluster has {there}: lower it, or leave it out"
        )
    return there if asked is None else asked
