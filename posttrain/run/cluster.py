"""The Ray cluster that a run's stages share: started on this machine, or joined."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray

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


class ClusterError(RuntimeError):
    """Ray could not be started or reached."""


@contextmanager
def cluster(
    *, num_cpus: int | None, num_gpus: int, object_store_mb: int, address: str | None
) -> Iterator[None]:
    """Start a local Ray cluster, or join one, for the length of a `with` block.

    Args:
        num_cpus: Cores to announce to Ray; all of the machine's where None.
        num_gpus: GPUs to announce to Ray.
        object_store_mb: Shared memory for objects in flight, in MiB.
        address: An existing cluster's address; None starts one on this machine, on loopback.

    Raises:
        ClusterError: If Ray does not start; the message says what to look at.
    """
    os.environ.update(WORKER_ENVIRONMENT)
    if not address:  # the only node is not taken away while the run goes on
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    local = {
        "num_cpus": num_cpus,
        "num_gpus": num_gpus,
        "object_store_memory": object_store_mb * 2**20,
        "include_dashboard": False,
    }
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address or "local",
            # Processes of a cluster started here inherit it, and start faster where Ray has none to set.
            runtime_env={"env_vars": WORKER_ENVIRONMENT} if address else None,
            logging_level=logging.ERROR,
            # Workers report through the run's files; their own output stays in Ray's session folder.
            log_to_driver=False,
            **({} if address else local),
        )
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
