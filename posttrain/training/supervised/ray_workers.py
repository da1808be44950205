"""Run a function in a group of Ray Train workers that share a torch.distributed process group."""

import logging
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _TorchBackend
from ray.train.v2.api.config import LoggingConfig
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from posttrain.config import StageConfig
from posttrain.run.node import node_address, use_interface_of
from posttrain.training.core.distributed import process_group_backend
from posttrain.training.stage_job import StageJob


class StageFailed(RuntimeError):
    """A stage's workers failed; the message is the first failed worker's own."""


class _OnInterface(_TorchBackend):
    """Ray Train's process group, whose ranks meet on the interfaces that their nodes are known by."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Name the interface in every worker, then make the process group."""
        worker_group.execute(_choose_interface)
        super().on_start(worker_group, backend_config)


@dataclass
class _Meeting(TorchConfig):
    """What Ray Train makes the process group from."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """The backend."""
        return _OnInterface


def _choose_interface() -> None:
    use_interface_of(node_address())


def run_workers(
    function: str,
    job: StageJob[StageConfig],
    *,
    num_workers: int,
    use_gpu: bool,
    scratch: Path,
) -> None:
    """Call `function(job)` in every worker and wait for all of them.

    Args:
        function: What each worker calls, as `package.module:name`; `torch.distributed` is initialised (gloo,
            or NCCL on GPUs). It is a name, because Ray Train's controller unpickles its arguments: for a
            function it would spend seconds on importing TRL before any worker starts.
        job: The argument of the function.
        num_workers: Number of processes: one GPU each, or one core each.
        use_gpu: Whether each worker takes a GPU.
        scratch: Folder for Ray Train's own bookkeeping.

    Raises:
        StageFailed: If a worker raised; the others are stopped. Or if there will never be a core for each.
    """
    cores = int(ray.cluster_resources().get("CPU", 0))
    if not use_gpu and num_workers > cores:
        raise StageFailed(
            f"{num_workers} num_workers take one core each, and the cluster has {cores}: lower it, or give"
            " Ray more (`ray start --num-cpus`)"
        )
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    trainer = TorchTrainer(
        _call,
        train_loop_config={"function": function, "job": job},
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=use_gpu),
        torch_config=_Meeting(backend=process_group_backend(use_gpu), timeout_s=600),
        run_config=RunConfig(
            name="ray-train",
            storage_path=str(scratch.resolve()),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        trainer.fit()
    except WorkerGroupError as error:
        rank, cause = min(error.worker_failures.items())
        raise StageFailed(f"worker {rank} of {num_workers} failed: {cause}") from cause
    except TrainingFailedError as error:
        raise StageFailed(str(error)) from error


def _call(work: dict[str, object]) -> None:
    """Call a stage's function in a worker."""
    pkgutil.resolve_name(str(work["function"]))(work["job"])
