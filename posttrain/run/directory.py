"""A run's directory: who may use it, and checkpoints that are whole or absent.

Layout; everything that must not be half written goes to a temporary name first::

    <output_dir>/<name>/
        config.yaml  resolved.json  environment.json  data.json  licences.json
        metrics.jsonl  evaluation.jsonl  report.html
        <stage>/checkpoint-<step>/   loadable as it is, plus state/ and manifest.json
        <stage>/stage.json           names the final checkpoint of a finished stage
        <stage>/curation/            what a stage's curation kept and dropped, and why
        rollouts/  images/
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from posttrain.config import RunConfig
from posttrain.files.durable import explaining_full_disk, make_directory, sync, write_atomic, write_synced
from posttrain.files.strict_json import JsonObject
from posttrain.run.json_fields import mapping, texts
from posttrain.run.record import RESOLVED
from posttrain.run.resuming import changed_packages, changed_settings, environment, foreign_layout

MANIFEST = "manifest.json"
#: Held by the process that works on the run (see `run_process`).
LOCK = ".lock"
CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")
ENVIRONMENT, FINGERPRINTS, LICENCES = "environment.json", "data.json", "licences.json"

logger = logging.getLogger(__name__)


class RunDirError(RuntimeError):
    """A run's directory cannot be used as asked."""


class UsedRunDirectory(RunDirError):
    """The directory holds something already."""


class ChangedRun(RunDirError):
    """The config or the data differ from what the run began with."""


class ForeignRun(RunDirError):
    """Another version of posttrain began the run, and wrote its directory in another layout."""


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
        """Return a run's directory, whether it is there or not."""
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
            ForeignRun: If another version of posttrain began it, whose runs this one cannot continue.
            ChangedRun: If the config is not the one that the run began with; names the keys.
            DiskFull: If there is no space.
        """
        run = cls.of(config)
        resolved = config.model_dump(mode="json")
        begun = (run.path / RESOLVED).is_file()
        if begun and not resume:
            raise UsedRunDirectory(
                f"{run.path} holds a run already: go on with it by --resume, or choose another `name`"
            )
        if not begun and run.path.exists() and any(map(_is_somebodys, run.path.iterdir())):
            raise UsedRunDirectory(
                f"{run.path} is not empty and holds no run (no resolved.json): choose another `name`"
            )
        here = environment()
        if begun:
            run._check_begun(resolved, here, allow_changes)
        elif resume:
            logger.warning("%s holds no run to resume: beginning it", run.path)
        if allow_changes:
            (run.path / FINGERPRINTS).unlink(missing_ok=True)
        make_directory(run.path)
        # resolved.json first: it marks the directory as a run, so a crash after it can be resumed.
        write_atomic(run.path / RESOLVED, _json(resolved))
        given = config.model_dump(mode="json", exclude_unset=True)
        write_atomic(run.path / "config.yaml", yaml.safe_dump(given, sort_keys=False, allow_unicode=True))
        write_atomic(run.path / ENVIRONMENT, _json(here))
        return run

    def check_data(self, fingerprints: Mapping[str, str], licences: Mapping[str, str]) -> None:
        """Record what the run's data are, or compare them with what was recorded.

        Args:
            fingerprints: A hash of the content by dataset name.
            licences: What is said of each dataset's licence, for model cards.

        Raises:
            ChangedRun: If a dataset recorded earlier has another fingerprint now.
        """
        recorded = self.fingerprints()
        changed = sorted(
            name for name in fingerprints if recorded.get(name) not in (None, fingerprints[name])
        )
        if changed:
            raise ChangedRun(
                f"{self.path}: the data of {', '.join(changed)} changed since the run began. Restore them,"
                " choose another `name`, or go on regardless with --allow-changes"
            )
        if not fingerprints.keys() <= recorded.keys():
            write_atomic(self.path / LICENCES, _json({**self.licences(), **licences}))
            write_atomic(self.path / FINGERPRINTS, _json({**recorded, **fingerprints}))

    def fingerprints(self) -> dict[str, str]:
        """Return the hash of each dataset's content that is recorded, by the dataset's name."""
        return self._texts(FINGERPRINTS)

    def licences(self) -> dict[str, str]:
        """Return the licence of each dataset that is recorded, by the dataset's name."""
        return self._texts(LICENCES)

    def _texts(self, name: str) -> dict[str, str]:
        path = self.path / name
        return texts(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}

    def stage_dir(self, stage: str) -> Path:
        """Return where a stage's checkpoints lie, and make the folder where it is missing."""
        directory = self.path / stage
        make_directory(directory)
        return directory

    def scratch(self, stage: str) -> Path:
        """Make a folder for a stage's passing files; it is removed when the stage is finished."""
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
        """Return the stage's newest valid checkpoint, or None; warn of every bad one passed over."""
        return newest_checkpoint(self.path / stage)

    def finish_stage(self, stage: str, checkpoint: Path) -> None:
        """Record that a stage is done and which of its checkpoints the next stage starts from."""
        shutil.rmtree(self.path / stage / ".scratch", ignore_errors=True)
        write_atomic(self.path / stage / "stage.json", _json({"final": checkpoint.name}))

    def final_checkpoint(self, stage: str) -> Path | None:
        """Return the final checkpoint of a finished stage; None where it is not finished.

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

    def _check_begun(self, settings: JsonObject, here: JsonObject, allow_changes: bool) -> None:
        """Check that the run can be gone on with, and warn of packages that changed."""
        path = self.path / ENVIRONMENT
        # All files that say what a run is are written before anything else: without this one it did nothing.
        recorded = mapping(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else here
        if reason := foreign_layout(recorded):
            raise ForeignRun(f"{self.path} cannot be resumed: {reason}")
        if changes := changed_settings(json.loads((self.path / RESOLVED).read_text("utf-8")), settings):
            if not allow_changes:
                raise ChangedRun(
                    f"{self.path}: the config changed since the run began ({changes}). Restore it, choose"
                    " another `name`, or go on regardless with --allow-changes"
                )
            logger.warning("%s goes on with a changed config: %s", self.path, changes)
        if packages := changed_packages(recorded, here):
            logger.warning("packages changed since the run began: %s", packages)


def save_checkpoint(checkpoint: Path, write: Callable[[Path], object]) -> Path:
    """Write a checkpoint so that a crash at any moment leaves it whole or absent.

    It is written to a temporary name, synced, sealed with a manifest of hashes, and renamed. A valid
    checkpoint of this name is left as it is: within a run a step has one state.

    Args:
        checkpoint: Its folder, `…/checkpoint-<step>`.
        write: Given an empty folder, writes the checkpoint's files into it.

    Returns:
        `checkpoint`.

    Raises:
        DiskFull: If there is no space; the partial files are removed, earlier checkpoints untouched.
    """
    if checkpoint.exists() and _is_valid(checkpoint):
        return checkpoint
    make_directory(checkpoint.parent)
    unfinished = checkpoint.with_name(f".{checkpoint.name}.tmp")
    try:
        with explaining_full_disk(checkpoint):
            for leftover in filter(_unfinished, checkpoint.parent.glob(".checkpoint-*")):
                shutil.rmtree(leftover)
            unfinished.mkdir()
            write(unfinished)
            _seal(unfinished)
            if checkpoint.exists():
                _discard(checkpoint)
            unfinished.rename(checkpoint)
            sync(checkpoint.parent)
    except Exception:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return checkpoint


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
    """Return the valid checkpoint of the highest step, or None; warn of every bad one passed over."""
    for path in _checkpoints(stage_dir):
        try:
            verify_checkpoint(path)
        except CorruptCheckpoint as error:
            logger.warning("passing over %s, trying the one before it: %s", path.name, error)
        else:
            return path
    return None


def _checkpoints(stage_dir: Path) -> list[Path]:
    """Return every checkpoint's folder, valid or not, the highest step first."""
    if not stage_dir.is_dir():
        return []
    found = (path for path in stage_dir.iterdir() if CHECKPOINT_NAME.fullmatch(path.name))
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """Return the step in a checkpoint's name."""
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
    """Return whether a path is what a crash left of a write."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def _is_somebodys(path: Path) -> bool:
    """Return whether a path is neither left of a write nor the lock of a run that is about to begin."""
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


def _digest(files: Mapping[str, Mapping[str, int | str]]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
