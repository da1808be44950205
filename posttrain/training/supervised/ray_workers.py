"""Run a function in a group of Ray Train workers that share a torch.distributed process group."""

import logging
import pkgutil
from pathlib import Path

from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import LoggingConfig
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from posttrain.config import StageConfig
from posttrain.training.core.distributed import process_group_backend
from posttrain.training.stage_job import StageJob


class StageFailed(RuntimeError):
    """A stage's workers failed; the message is the first failed worker's own."""


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
        StageFailed: If a worker raised; the others are stopped.
    """
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    trainer = TorchTrainer(
        _call,
        train_loop_config={"function": function, "job": job},
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=use_gpu),
        torch_config=TorchConfig(backend=process_group_backend(use_gpu), timeout_s=600),
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
