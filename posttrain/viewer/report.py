"""`report.html`: a run as one page that needs nothing but itself.

What a model wrote is hostile text on this page. The template escapes everything; a content security
policy lets the browser run the page's own script only, by its hash, and load nothing from anywhere.
"""

import base64
import hashlib
from pathlib import Path
from typing import Any

from markupsafe import Markup

from posttrain.viewer.cards import PHASES, build_cards
from posttrain.viewer.charts import HEIGHT, WIDTH
from posttrain.viewer.gains import gains
from posttrain.viewer.page import HERE, page, write_page
from posttrain.viewer.panels import stage_charts
from posttrain.viewer.records import RunRecord, read_run
from posttrain.viewer.summary import environment_facts, facts, progress, results, verdict
from posttrain.viewer.wording import shortened, visible

#: A directory with none of these is no run.
RUN_FILES = ("config.yaml", "resolved.json", "metrics.jsonl", "evaluation.jsonl", "rollouts")


class ReportError(ValueError):
    """A directory of which no report can be made."""


def write_report(run_dir: Path) -> Path:
    """Write `<run_dir>/report.html`, replacing an earlier one.

    Works at any time in a run's life: what is not there yet is left out, and lines that can't be read
    are counted at the foot of the page.

    Args:
        run_dir: A run's directory.

    Returns:
        The page's path.

    Raises:
        ReportError: If the directory holds no run.
        DiskFull: If there is no space; an earlier report is intact.

    Example:
        write_report(Path("runs/quickstart"))
    """
    if not any((run_dir / name).exists() for name in RUN_FILES):
        raise ReportError(
            f"{run_dir} holds no run: none of {', '.join(RUN_FILES)} is there. Give the directory that"
            " `posttrain run` printed, usually runs/<name>"
        )
    path = run_dir / "report.html"
    return write_page(path, render(read_run(run_dir)))


def render(record: RunRecord) -> str:
    """The page's HTML."""
    script = (HERE / "report.js").read_text("utf-8")
    return page(
        "report.html.jinja",
        script=Markup(script),  # noqa: S704 (the package's own file)
        script_hash=_source_hash(script),
        **_content(record),
    )


def _content(record: RunRecord) -> dict[str, Any]:
    """Everything that the template shows."""
    stages = progress(record)
    tasks = results(record.evaluation, [stage.name for stage in stages], record.origins)
    headline, notes = verdict(record, tasks)
    cards = build_cards(record)
    return {
        "name": visible(str(record.config.get("name") or record.directory.resolve().name)),
        "verdict": headline,
        "notes": notes,
        "facts": facts(record, stages),
        "stages": stages,
        "stage_colours": {stage.name: index for index, stage in enumerate(stages)},
        "tasks": tasks,
        "gains": gains(record, tasks),
        "curves": [(stage.name, charts) for stage in stages if (charts := stage_charts(record, stage.name))],
        "chart_size": (WIDTH, HEIGHT),
        "cards": cards,
        "phases": PHASES,
        "config_text": visible(shortened(record.config_text, 40_000)),
        "environment": environment_facts(record),
        "unreadable": sorted(record.unreadable.items()),
    }


def _source_hash(script: str) -> str:
    """What a content security policy calls an inline script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
