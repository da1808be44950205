"""A run's directory: who may use it, and checkpoints that are whole or absent.

Layout; everything that must not be half written goes to a temporary name first::

    <output_dir>/<name>/
        config.yaml  resolved.json  environment.json  data.json  metrics.jsonl  report.html
        <stage>/checkpoint-<step>/   loadable as it is, plus state/ and manifest.json
        <stage>/stage.json           names the final checkpoint of a finished stage
        <stage>/curation/            what a stage's curation kept and dropped, and why
        rollouts/  images/
"""

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from posttrain.config import RunConfig
from posttrain.files.durable import explaining_full_disk, make_directory, sync, write_atomic, write_synced

MANIFEST = "manifest.json"
#: Held by the process that works on the run (see `run_process`).
LOCK = ".lock"
CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")
#: Keys that say where things lie and not what they are: a run may be moved, or resumed from elsewhere.
PLACES = {"output_dir", "base_dir"}
#: Changes listed in an error before the rest is only counted.
MAX_CHANGES_LISTED = 12

logger = logging.getLogger(__name__)


class RunDirError(RuntimeError):
    """A run's directory cannot be used as asked."""


class UsedRunDirectory(RunDirError):
    """The directory holds something already."""


class ChangedRun(RunDirError):
    """The config or the data differ from what the run began with."""


class CorruptCheckpoint(RunDirError):
    """A checkpoint that does not match its manifest."""


@dataclass(frozen=True)
class RunDir:
    """One run's directory; small and picklable, so that workers can be given it.

    Attributes:
        path: Absolute path of `<output_dir>/<name>`.

    Example:
        run = RunDir.create(config, resume=False)
        checkpoint = run.save_checkpoint("sft", 100, model.save_pretrained, keep=2)
        run.finish_stage("sft", checkpoint)
    """

    path: Path

    @classmethod
    def of(cls, config: RunConfig) -> "RunDir":
        """Where a run's directory is, be it there or not."""
        return cls((Path(config.output_dir) / config.name).absolute())

    @classmethod
    def create(cls, config: RunConfig, resume: bool, allow_changes: bool = False) -> "RunDir":
        """Begin a run, or go on with one.

        Args:
            config: The resolved config; its `output_dir` and `name` say where.
            resume: Go on with what is there; with nothing there the run begins.
            allow_changes: Go on although config or data changed; the new ones are recorded.

        Raises:
            UsedRunDirectory: If something is there and `resume` is off, or it is not a run.
            ChangedRun: If the config is not the one that the run began with; names the keys.
            DiskFull: If there is no space.
        """
        run = cls.of(config)
        resolved = config.model_dump(mode="json")
        begun = (run.path / "resolved.json").is_file()
        if begun and not resume:
            raise UsedRunDirectory(
                f"{run.path} holds a run already: go on with it by --resume, or choose another `name`"
            )
        if not begun and run.path.exists() and any(map(_is_somebodys, run.path.iterdir())):
            raise UsedRunDirectory(
                f"{run.path} is not empty and holds no run (no resolved.json): choose another `name`"
            )
        if begun:
            run._check_config(resolved, allow_changes)
        elif resume:
            logger.warning("%s holds no run to resume: beginning it", run.path)
        environment = _environment()
        if begun:
            run._warn_of_changed_packages(environment)
        if allow_changes:
            (run.path / "data.json").unlink(missing_ok=True)
        make_directory(run.path)
        # resolved.json first: it marks the directory as a run, so a crash after it can be resumed.
        write_atomic(run.path / "resolved.json", _json(resolved))
        given = config.model_dump(mode="json", exclude_unset=True)
        write_atomic(run.path / "config.yaml", yaml.safe_dump(given, sort_keys=False, allow_unicode=True))
        write_atomic(run.path / "environment.json", _json(environment))
        return run

    def check_data(self, fingerprints: Mapping[str, str]) -> None:
        """Record what the run's data are, or compare them with what was recorded.

        Args:
            fingerprints: A hash of the content by dataset name.

        Raises:
            ChangedRun: If a dataset recorded earlier has another fingerprint now.
        """
        path = self.path / "data.json"
        recorded: dict[str, str] = json.loads(path.read_text()) if path.is_file() else {}
        changed = sorted(
            name for name in fingerprints if recorded.get(name) not in (None, fingerprints[name])
        )
        if changed:
            raise ChangedRun(
                f"{self.path}: the data of {', '.join(changed)} changed since the run began. Restore them,"
                " choose another `name`, or go on regardless with --allow-changes"
            )
        if not fingerprints.keys() <= recorded.keys():
            write_atomic(path, _json({**recorded, **fingerprints}))

    def stage_dir(self, stage: str) -> Path:
        """Where a stage's checkpoints lie; made where it is missing."""
        directory = self.path / stage
        make_directory(directory)
        return directory

    def scratch(self, stage: str) -> Path:
        """A folder for a stage's passing files; it goes when the stage is finished."""
        directory = self.path / stage / ".scratch"
        make_directory(directory)
        return directory

    def save_checkpoint(
        self, stage: str, step: int, write: Callable[[Path], object], keep: int | None = None
    ) -> Path:
        """Save `<stage>/checkpoint-<step>`, then drop all but the newest `keep` up to this step.

        Raises:
            DiskFull: If there is no space; earlier checkpoints are intact.
        """
        checkpoint = save_checkpoint(self.stage_dir(stage) / f"checkpoint-{step}", write)
        if keep is not None:
            # A later step is one that was found corrupt on resume: it must not crowd out valid ones.
            for path in [path for path in _checkpoints(checkpoint.parent) if step_of(path) <= step][keep:]:
                _discard(path)
        return checkpoint

    def newest_checkpoint(self, stage: str) -> Path | None:
        """The stage's newest valid checkpoint, or None; says so where it passes over a bad one."""
        return newest_checkpoint(self.path / stage)

    def finish_stage(self, stage: str, checkpoint: Path) -> None:
        """Record that a stage is done and which of its checkpoints the next stage starts from."""
        shutil.rmtree(self.path / stage / ".scratch", ignore_errors=True)
        write_atomic(self.path / stage / "stage.json", _json({"final": checkpoint.name}))

    def final_checkpoint(self, stage: str) -> Path | None:
        """The final checkpoint of a finished stage; None where it is not finished.

        A stage whose final checkpoint is damaged counts as not finished (a warning says so): it goes on
        from its newest valid one.
        """
        record = self.path / stage / "stage.json"
        if not record.is_file():
            return None
        checkpoint = record.parent / json.loads(record.read_text())["final"]
        try:
            verify_checkpoint(checkpoint)
        except CorruptCheckpoint as error:
            logger.warning("stage %s has to be finished again: %s", stage, error)
            return None
        return checkpoint

    def _check_config(self, resolved: dict[str, Any], allow_changes: bool) -> None:
        before, now = _flatten(json.loads((self.path / "resolved.json").read_text())), _flatten(resolved)
        changes = [
            f"{key}: {before.get(key, 'absent')} → {now.get(key, 'absent')}"
            for key in sorted((before.keys() | now.keys()) - PLACES)
            if before.get(key, "absent") != now.get(key, "absent")
        ]
        if not changes:
            return
        more = f"; and {len(changes) - MAX_CHANGES_LISTED} more" if len(changes) > MAX_CHANGES_LISTED else ""
        listed = "; ".join(changes[:MAX_CHANGES_LISTED]) + more
        if not allow_changes:
            raise ChangedRun(
                f"{self.path}: the config changed since the run began ({listed}). Restore it, choose another"
                " `name`, or go on regardless with --allow-changes"
            )
        logger.warning("%s goes on with a changed config: %s", self.path, listed)

    def _warn_of_changed_packages(self, environment: dict[str, Any]) -> None:
        path = self.path / "environment.json"
        before = json.loads(path.read_text())["packages"] if path.is_file() else {}
        now = environment["packages"]
        changed = [f"{n} {before[n]} → {now.get(n, 'absent')}" for n in before if before[n] != now.get(n)]
        if changed:
            logger.warning("packages changed since the run began: %s", ", ".join(changed))


def save_checkpoint(directory: Path, write: Callable[[Path], object]) -> Path:
    """Write a checkpoint so that a crash at any moment leaves it whole or absent.

    It is written to a temporary name, synced, sealed with a manifest of hashes, and renamed. A valid
    checkpoint of this name is left as it is: within a run a step has one state.

    Args:
        directory: `…/checkpoint-<step>`.
        write: Given an empty folder, writes the checkpoint's files into it.

    Returns:
        `directory`.

    Raises:
        DiskFull: If there is no space; the partial files are removed, earlier checkpoints untouched.
    """
    if directory.exists() and _is_valid(directory):
        return directory
    make_directory(directory.parent)
    unfinished = directory.with_name(f".{directory.name}.tmp")
    try:
        with explaining_full_disk(directory):
            for leftover in filter(_unfinished, directory.parent.glob(".checkpoint-*")):
                shutil.rmtree(leftover)
            unfinished.mkdir()
            write(unfinished)
            _seal(unfinished)
            if directory.exists():
                _discard(directory)
            unfinished.rename(directory)
            sync(directory.parent)
    except Exception:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return directory


def verify_checkpoint(path: Path) -> None:
    """Check every file of a checkpoint against its manifest.

    Raises:
        CorruptCheckpoint: If the manifest is missing or damaged, or a file is missing or differs.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        files = manifest["files"]
        if manifest["digest"] != _digest(files):
            raise CorruptCheckpoint(f"{path / MANIFEST} is damaged: its own digest does not match")
        for name, recorded in files.items():
            size = (path / name).stat().st_size
            if size != recorded["bytes"]:
                raise CorruptCheckpoint(f"{path / name} has {size} bytes instead of {recorded['bytes']}")
            if _hash(path / name) != recorded["sha256"]:
                raise CorruptCheckpoint(f"{path / name} differs from its hash in {MANIFEST}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptCheckpoint(f"{path} is not a whole checkpoint: {error!r}") from error


def newest_checkpoint(stage_dir: Path) -> Path | None:
    """The valid checkpoint of the highest step, or None; warns of every bad one passed over."""
    for path in _checkpoints(stage_dir):
        try:
            verify_checkpoint(path)
        except CorruptCheckpoint as error:
            logger.warning("passing over %s, trying the one before it: %s", path.name, error)
        else:
            return path
    return None


def _checkpoints(stage_dir: Path) -> list[Path]:
    """Every checkpoint's folder, valid or not, the highest step first."""
    if not stage_dir.is_dir():
        return []
    found = (path for path in stage_dir.iterdir() if CHECKPOINT_NAME.fullmatch(path.name))
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(checkpoint.name.rpartition("-")[2])


def _is_valid(checkpoint: Path) -> bool:
    try:
        verify_checkpoint(checkpoint)
    except CorruptCheckpoint:
        return False
    return True


def _discard(checkpoint: Path) -> None:
    """Remove a checkpoint; it loses its name first, so half of one is never seen."""
    doomed = checkpoint.with_name(f".{checkpoint.name}.old.tmp")
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)


def _unfinished(path: Path) -> bool:
    """Whether a path is what a crash left of a write."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def _is_somebodys(path: Path) -> bool:
    """Whether a path is neither left of a write nor the lock of a run that is about to begin."""
    return path.name != LOCK and not _unfinished(path)


def _seal(directory: Path) -> None:
    """Bring every file to the disk, and the manifest last."""
    paths = sorted(directory.rglob("*"))
    files = {
        path.relative_to(directory).as_posix(): {"bytes": path.stat().st_size, "sha256": _hash(path)}
        for path in paths
        if path.is_file()
    }
    for path in paths:
        sync(path)
    write_synced(directory / MANIFEST, _json({"files": files, "digest": _digest(files)}))
    sync(directory)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(files: dict[str, dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _flatten(value: Any, key: str = "") -> dict[str, Any]:
    """Leaves of nested mappings and lists by dotted key, as in `stages[1].learning_rate`."""
    if isinstance(value, dict) and value:
        parts = [_flatten(item, f"{key}.{name}" if key else name) for name, item in value.items()]
    elif isinstance(value, list) and value:
        parts = [_flatten(item, f"{key}[{index}]") for index, item in enumerate(value)]
    else:
        return {key: value}
    return {name: leaf for part in parts for name, leaf in part.items()}


def _environment() -> dict[str, Any]:
    packages = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }
