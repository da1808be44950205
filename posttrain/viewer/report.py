"""`report.html`: a run as one page that needs nothing but itself.

What a model wrote is hostile text on this page. The template escapes everything; a content security
policy lets the browser run the page's own script only, by its hash, and load nothing from anywhere.
"""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from posttrain.run.record import RESOLVED
from posttrain.run.rows import EVALUATION, METRICS, ROLLOUTS
from posttrain.viewer.advice import pacing_advice
from posttrain.viewer.cards import PHASES, build_cards
from posttrain.viewer.charts import HEIGHT, WIDTH
from posttrain.viewer.comparison_page import without_cells, write_comparisons
from posttrain.viewer.episodes import PAGE, source_hash, write_episodes
from posttrain.viewer.gains import gains
from posttrain.viewer.judging import agreements
from posttrain.viewer.page import HERE, page, write_page
from posttrain.viewer.panels import stage_charts
from posttrain.viewer.records import RunContents, read_contents
from posttrain.viewer.summary import environment_facts, facts, progress, results, verdict
from posttrain.viewer.wording import link_to, shortened, visible

#: A directory with none of these is no run.
RUN_FILES = ("config.yaml", RESOLVED, METRICS, EVALUATION, ROLLOUTS)


class ReportError(ValueError):
    """A directory of which no report can be made."""


def write_report(run: Path) -> Path:
    """Write `<run>/report.html`, replacing an earlier one, and beside it `episodes.html` and its comparisons.

    Works at any time in a run's life: what is not there yet is left out, and lines that can't be read
    are counted at the foot of the page.

    Args:
        run: A run's directory.

    Returns:
        The page's path.

    Raises:
        ReportError: If the directory holds no run.
        DiskFull: If there is no space; an earlier report is intact.

    Example:
        write_report(Path("runs/quickstart"))
    """
    if not any((run / name).exists() for name in RUN_FILES):
        raise ReportError(
            f"{run} holds no run: none of {', '.join(RUN_FILES)} is there. Give the directory that"
            " `posttrain run` printed, usually runs/<name>"
        )
    contents = read_contents(run)
    comparisons = write_comparisons(contents)
    episodes = write_episodes(contents)
    return write_page(run / "report.html", render(without_cells(contents), comparisons, episodes))


def render(run: RunContents, comparisons: Sequence[tuple[str, str]] = (), episodes: int = 0) -> str:
    """Return the page's HTML.

    Args:
        run: What it shows.
        comparisons: Name and page of each comparison of the run.
        episodes: How many the page beside it shows (see `write_episodes`); 0 where there is none.
    """
    script = (HERE / "report.js").read_text("utf-8")
    return page(
        "report.html.jinja",
        script=Markup(script),  # noqa: S704 (the package's own file)
        script_hash=source_hash(script),
        comparisons=comparisons,
        episodes=episodes,
        episodes_page=PAGE,
        **_content(run),
    )


def _content(run: RunContents) -> dict[str, object]:
    """Return everything that the template shows, by the name that it has there."""
    stages = progress(run)
    tasks = results(run.evaluation, [stage.name for stage in stages], run.record.origins)
    headline, notes = verdict(run, tasks)
    return {
        "name": visible(run.record.name or run.path.resolve().name),
        "verdict": headline,
        "notes": notes,
        "facts": facts(run, stages),
        "stages": stages,
        "stage_colours": {stage.name: index for index, stage in enumerate(stages)},
        "tasks": tasks,
        "gains": gains(run, tasks),
        "agreements": agreements(run),
        "curves": [(stage.name, charts) for stage in stages if (charts := stage_charts(run, stage.name))],
        "advice": {
            stage.name: pacing_advice(run.metrics.get(stage.name, {}), stage.max_staleness)
            for stage in run.record.stages
        },
        "step_folders": {
            stage: link_to(f"{ROLLOUTS}/{stage}/") for stage in run.step_files if stage != ROLLOUTS
        },
        "evaluation_links": {name: link_to(place) for name, place in run.evaluation_files.items()},
        "chart_size": (WIDTH, HEIGHT),
        "cards": build_cards(run),
        "phases": PHASES,
        "config_text": visible(shortened(run.config_text, 40_000)),
        "environment": environment_facts(run),
        "unreadable": sorted(run.unreadable.items()),
    }
