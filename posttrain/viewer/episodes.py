"""`episodes.html`: every episode of a run, to filter, to search, and to read beside its group."""

import base64
import hashlib

from markupsafe import Markup

from posttrain.viewer.episode_pieces import FOLDER, write_pieces
from posttrain.viewer.page import HERE, page, write_page
from posttrain.viewer.records import RunContents
from posttrain.viewer.wording import visible

#: The page, in the run's directory.
PAGE = "episodes.html"


def write_episodes(run: RunContents) -> int:
    """Write `<run>/episodes.html` and the folder of its pieces; return the number of episodes.

    Args:
        run: What the run's directory holds; where it has no episodes nothing is written.

    Raises:
        DiskFull: If there is no space.
    """
    if not run.rollout_files:
        return 0
    count = write_pieces(run.path, run.rollout_files)
    source = (HERE / "episodes.js").read_text("utf-8")
    tasks = {task.name: dict(task.weights) for stage in run.record.stages for task in stage.tasks}
    html = page(
        "episodes.html.jinja",
        name=visible(run.record.name or run.path.resolve().name),
        count=count,
        folder=FOLDER,
        weights=tasks,
        own_style=Markup((HERE / "episodes.css").read_text("utf-8")),  # noqa: S704 (the package's own file)
        script=Markup(source),  # noqa: S704 (the package's own file)
        script_hash=source_hash(source),
    )
    write_page(run.path / PAGE, html)
    return count


def source_hash(script: str) -> str:
    """Return what a content security policy calls an inline script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
