"""A curation's directory, and the check that neither recipe nor data has changed since the curation began.

<output_dir>/answers.sqlite       the models' answers, shared by the curations of one output_dir
<output_dir>/<name>/
    curation.json                 the recipe, and fingerprints of the data and of the user's own code
    steps/00-query.jsonl …        every step's verdict on every row, appended as it is known
    images/                       of the episodes that became rows
    kept.jsonl  dropped.jsonl     the rows, in the canonical form; a dropped one says why in `dropped`
    funnel.json  curation.html
"""

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from posttrain import __version__
from posttrain.config.curation import CurationConfig
from posttrain.curation.asking import checkpoint_version
from posttrain.curation.outcomes import CurationError
from posttrain.curation.taxonomy import SHIPPED
from posttrain.data.dataset import Dataset
from posttrain.files.durable import make_directory, write_atomic
from posttrain.files.strict_json import Json, JsonObject

#: Keys of a recipe that may change while a curation is under way: places, and how fast things go.
_PLACES = dict.fromkeys(("output_dir", "base_dir", "taxonomy", "max_error_share", "cluster"), True)
_TRANSPORT = ("base_url", "concurrency", "timeout_s", "max_attempts", "actors", "engine")
#: Folder of the images of episodes.
IMAGES = "images"
#: Most changes that an error message lists.
MOST_CHANGES = 8


@contextmanager
def claimed(config: CurationConfig, dataset: Dataset, resume: bool) -> Iterator[Path]:
    """Hold a curation's directory, which no other process can use meanwhile.

    Args:
        config: The recipe.
        dataset: Its data.
        resume: Whether to continue what is there; if nothing is there, the curation begins.

    Yields:
        The directory.

    Raises:
        CurationError: If a curation is there and `resume` is off, if recipe or data have changed since it
            began, or if another process uses the directory.
        DiskFull: If there is no space.
    """
    directory = (Path(config.output_dir) / config.name).absolute()
    make_directory(directory / "steps")
    with (directory / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CurationError(f"another process curates into {directory}; wait for it, or end it") from None
        record, identity = directory / "curation.json", _identity(config, dataset)
        if not record.is_file():
            if any(entry.name not in (".lock", "steps") for entry in directory.iterdir()):
                raise CurationError(f"{directory} holds something else; choose another `name`")
            write_atomic(record, json.dumps(identity, indent=1, ensure_ascii=False) + "\n")
        elif not resume:
            raise CurationError(
                f"{directory} holds a curation already: go on with it by --resume, or choose another `name`"
            )
        elif changes := _changes(json.loads(record.read_text("utf-8")), json.loads(json.dumps(identity))):
            shown = "; ".join(changes[:MOST_CHANGES]) + ("; …" if changes[MOST_CHANGES:] else "")
            raise CurationError(
                f"{directory}: the recipe or its data changed since this curation began: {shown}. Undo that,"
                " or choose another `name`; answers that were cached are used again"
            )
        yield directory


def _identity(config: CurationConfig, dataset: Dataset) -> JsonObject:
    """Collect everything that the verdicts depend on."""
    recipe = config.model_dump(mode="json", exclude=_PLACES)  # pyright: ignore[reportArgumentType]
    for endpoint in recipe["endpoints"].values():
        for key in _TRANSPORT:
            endpoint.pop(key, None)
        if "checkpoint" in endpoint:
            endpoint["checkpoint"] = checkpoint_version(endpoint["checkpoint"])
    own = {ref.name.rpartition(":")[0] for step in config.steps for ref in step.plugins()}
    code: JsonObject = {
        name: _digest(Path(config.base_dir) / name) for name in sorted(own) if name.endswith(".py")
    }
    return {
        "version": __version__,
        "recipe": recipe,
        "taxonomy": _digest(Path(config.taxonomy or SHIPPED)),
        "code": code,
        "data": {"sha256": dataset.fingerprint, "rows": len(dataset), "broken": len(dataset.broken)},
    }


def _digest(path: Path) -> str:
    """Compute the hash of a file, or return "absent"."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "absent"


def _changes(before: Json, now: Json, key: str = "") -> list[str]:
    """List what differs between two JSON values, as `key: before → now`."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = sorted(before.keys() | now.keys())
        return [
            change
            for name in names
            for change in _changes(before.get(name), now.get(name), f"{key}.{name}".lstrip("."))
        ]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = enumerate(zip(before, now, strict=True))
        return [change for i, (old, new) in pairs for change in _changes(old, new, f"{key}[{i}]")]
    return [] if before == now else [f"{key}: {str(before)[:60]} → {str(now)[:60]}"]
