"""`posttrain submit`: run a YAML file as a job of a Ray cluster, with this machine's code.

What is uploaded is a folder: the recipe as it was read, the files beside it that code and settings need,
this version's packages, and the declaration of their plugins. Data and models are not uploaded: the cluster
has them at the paths that the recipe names.
"""

import argparse
import asyncio
import importlib.metadata
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from posttrain.cli.commands import add_command
from posttrain.config import Document, RunConfig, build_run, read_run
from posttrain.run.record import RESOLVED

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

EXAMPLES = """\
examples:
  posttrain submit my_run.yaml output_dir=/shared/runs --address http://head:8265
  posttrain submit my_run.yaml output_dir=/shared/runs --address http://head:8265 --resume

The job runs the same file with this machine's posttrain, and the files beside it: plugins, datasets_cfg/. The
cluster has the other packages, and sees the data, the model and output_dir at the paths that the file names.
Ctrl-C stops watching and leaves the job running; `ray job stop ID` ends it, with a checkpoint.
"""

PACKAGES = ("posttrain", "rewards", "tools_env", "datasets_cfg")
#: Of the folder of a recipe these stay behind: weights, pictures, archives, and caches.
LEFT_BEHIND = frozenset(
    ".safetensors .pt .pth .bin .gguf .ckpt .npy .npz .zip .gz .tar .parquet .arrow"
    " .png .jpg .jpeg .webp .mp4 .pyc .log".split()
)
#: Most bytes of the other files; whoever has more has data among them.
LIMIT = 50 << 20
RECIPE = "run.yaml"
#: Seconds that a job has for its checkpoint when it is told to stop.
STOP_S = 600
#: Seconds in which a cluster that has just started can take jobs, and what it says until then.
AGENT_S, _NO_AGENT = 180.0, "No available agent"


class SubmitError(RuntimeError):
    """A run cannot be submitted as asked; the message says what to do."""


@dataclass(frozen=True)
class Submission:
    """What a job is made from.

    Attributes:
        name: The run's.
        command: What the job runs, in the uploaded folder.
        environment: Its environment variables.
    """

    name: str
    command: str
    environment: dict[str, str]


def add_submit(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = add_command(
        commands, "submit", submit_command, "run a YAML file as a job of a cluster", EXAMPLES
    )
    parser.add_argument("source", metavar="RECIPE|FILE", help="a YAML file, or the name of a recipe")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="values that replace the file's")
    parser.add_argument("--address", required=True, metavar="URL", help="of the dashboard: http://head:8265")
    parser.add_argument("--resume", action="store_true", help="go on from the last valid checkpoint")
    parser.add_argument(
        "--allow-changes", action="store_true", help="with --resume: although settings or data changed"
    )


def submit_command(options: argparse.Namespace) -> int:
    """Submit a run, show its output, and return its exit code: `posttrain submit`."""
    document = read_run(options.source, options.overrides)
    config = build_run(document)
    flags = [flag for flag in ("resume", "allow_changes") if getattr(options, flag)]
    submission = prepare(config, [f"--{flag.replace('_', '-')}" for flag in flags])
    client = connect(options.address)
    with tempfile.TemporaryDirectory() as folder:
        stage(document, Path(folder), options.source)
        job = send(client, submission, Path(folder))
    print(f"{submission.name}: job {job} on {options.address}", flush=True)
    return follow(client, job)


def prepare(config: RunConfig, flags: Sequence[str]) -> Submission:
    """Make a job of a run.

    Args:
        config: The run.
        flags: Of `posttrain run`.

    Raises:
        SubmitError: If its results would be lost with the job's folder.
    """
    from posttrain.run.cluster import forwarded

    if not Path(config.output_dir).is_absolute():
        raise SubmitError(
            f"output_dir is {config.output_dir}, relative to the job's folder, which the cluster removes: add"
            " output_dir=/… , a folder of the cluster's storage"
        )
    python = ["python", "-u", "-m", "posttrain.cli", "run", RECIPE, *flags]
    environment = forwarded(config.cluster.environment) | {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)}
    return Submission(config.name, shlex.join(python), environment)


def stage(document: Document, folder: Path, source: str) -> None:
    """Lay what a job needs into a folder.

    Raises:
        SubmitError: If the recipe lies among more files than a job should carry.
    """
    data = dict(document.data)
    base = Path(str(data.pop("base_dir", ".")))
    if "/" in source or source.endswith((".yaml", ".yml")):  # a recipe that ships has no folder of its own
        for path in _beside(base):
            target = folder / path.relative_to(base)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    data["cluster"] = {"address": "auto", **(data.get("cluster") or {})}
    (folder / RECIPE).write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), encoding="utf-8")
    root = Path(__file__).parents[2]
    for package in PACKAGES:
        shutil.copytree(
            root / package,
            folder / package,
            ignore=shutil.ignore_patterns("__pycache__", "*.pyc"),
            dirs_exist_ok=True,
        )
    declared = folder / "posttrain-submitted.dist-info"
    declared.mkdir()
    distribution = importlib.metadata.distribution("posttrain")
    # In a checkout it may be an egg-info, whose file has another name.
    (declared / "METADATA").write_text(str(distribution.metadata), encoding="utf-8")
    (declared / "entry_points.txt").write_text(
        distribution.read_text("entry_points.txt") or "", encoding="utf-8"
    )


def _beside(base: Path) -> list[Path]:
    """List the files of a recipe's folder that a job may need.

    Raises:
        SubmitError: If they are large.
    """
    found = list(_files(base))
    sizes = {path: path.stat().st_size for path in found}
    if sum(sizes.values()) > LIMIT:
        largest = max(sizes, key=lambda path: sizes[path])
        raise SubmitError(
            f"the files of {base}, which a job takes along, have {sum(sizes.values()) >> 20} MiB; the largest"
            f" is {largest}. Put data where the cluster sees them, and the recipe into a folder of its own,"
            " with its datasets_cfg/ and plugins"
        )
    return found


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, but for hidden ones, runs, models, packages and what is left behind."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name == "__pycache__" or path.is_symlink():
            continue
        if path.is_dir():
            names = {each.name for each in path.iterdir()}
            if not names & {RESOLVED, "config.json", "pyvenv.cfg"}:
                yield from _files(path)
        elif path.is_file() and path.suffix.lower() not in LEFT_BEHIND:
            yield path


def connect(address: str) -> "JobSubmissionClient":
    """Connect to a cluster's dashboard.

    Raises:
        SubmitError: If it does not answer, or this machine lacks what it takes.
    """
    from ray.job_submission import JobSubmissionClient

    if not address.startswith(("http://", "https://")):
        raise SubmitError(f"--address is {address}: write the dashboard's, such as http://head:8265")
    os.environ.pop("RAY_ADDRESS", None)  # Ray would prefer them to the address that was given
    os.environ.pop("RAY_API_SERVER_ADDRESS", None)
    try:
        return JobSubmissionClient(address)
    except RuntimeError as error:
        if "ray[default]" in str(error):
            raise SubmitError("install the extra `cluster`: pip install 'posttrain[cluster]'") from None
        raise SubmitError(f"{address} refuses: {error}. {_HINT}") from error
    except ConnectionError as error:
        raise SubmitError(f"nobody answers at {address}: {error}. {_HINT}") from error


def send(client: "JobSubmissionClient", submission: Submission, folder: Path) -> str:
    """Upload a folder and start the job in it; return the job's id.

    Raises:
        SubmitError: If the cluster does not take it.
    """
    end = time.monotonic() + AGENT_S
    while True:
        try:
            return client.submit_job(
                entrypoint=submission.command,
                runtime_env={"working_dir": str(folder), "env_vars": submission.environment},
                metadata={"name": submission.name},
            )
        except RuntimeError as error:
            if _NO_AGENT not in str(error) or time.monotonic() > end:
                raise SubmitError(f"the cluster does not take the job: {error}") from error
        time.sleep(1.0)


_HINT = (
    "`ray start --head --dashboard-host=ADDRESS` serves the dashboard there, where ray[default] is installed;"
    " a cluster with a token wants RAY_AUTH_MODE=token and its ~/.ray/auth_token here as well"
)


def follow(client: "JobSubmissionClient", job: str) -> int:
    """Print a job's output until it ends, and return its exit code; Ctrl-C leaves it running."""
    from ray.job_submission import JobStatus

    async def print_all() -> None:
        async for text in client.tail_job_logs(job):
            print(text, end="", flush=True)

    try:
        while not (status := client.get_job_status(job)).is_terminal():
            asyncio.run(print_all())
    except KeyboardInterrupt:
        print(
            f"\njob {job} goes on: `ray job logs -f {job}` shows it, `ray job stop {job}` ends it with a"
            f" checkpoint (both with --address {client.get_address()})",
            file=sys.stderr,
        )
        return 130
    info = client.get_job_info(job)
    if status == JobStatus.SUCCEEDED:
        return 0
    print(f"job {job}: {status} ({info.message})", file=sys.stderr)
    return info.driver_exit_code or 1
