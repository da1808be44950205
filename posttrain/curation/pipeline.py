"""Run a curation: each step over the rows that the one before kept, then write the rows and the funnel.

A row is read when a filter looks at it, and forgotten afterwards; the decisions of the steps are on disk, in
their journals. So memory grows by about 10 bytes per row and step only, and a killed process loses only the
verdicts that were not finished.

Models are asked over HTTP, or in engines of this run; these come from the caller (`open_checkpoint`), so that
nothing here loads Ray or vLLM.
"""

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from posttrain.concurrency import all_or_first_failure
from posttrain.config.curation import CurationConfig
from posttrain.config.curation_steps import Step
from posttrain.config.endpoints import CheckpointConfig, EndpointConfig, ModelEntry
from posttrain.config.sampling_steps import CallTargetsStep, PlayingStep, RejectionStep, SamplingStep
from posttrain.curation.answers import AnswerCache
from posttrain.curation.asking import CachedModel, Model, OpenCheckpoint
from posttrain.curation.checks import check_recipe
from posttrain.curation.directory import IMAGES, claimed
from posttrain.curation.endpoint import Endpoint
from posttrain.curation.filters import Context, Filter, applies
from posttrain.curation.funnel import CurationReport, StepCount
from posttrain.curation.journal import DROPPED, FAILED, KEPT, PENDING, Journal
from posttrain.curation.outcomes import CurationError, Outcome, RowError
from posttrain.curation.playing import OpenEpisodes, PlaysEpisodes
from posttrain.curation.registry import FILTERS
from posttrain.curation.rows import changed, keep_images
from posttrain.curation.scoring import Scoring
from posttrain.curation.taxonomy import Taxonomy, load_taxonomy
from posttrain.curation.writing import write_rows
from posttrain.data.dataset import Dataset
from posttrain.data.sources import load_samples
from posttrain.files.durable import write_atomic
from posttrain.joints import Plugins
from posttrain.types import Sample, ToolSpec

#: Rows judged at the same time in a step that asks no model; rewards that ask one bound their own requests.
ROWS_AT_ONCE = 64


def curate(
    config: CurationConfig,
    plugins: Plugins,
    *,
    resume: bool = False,
    open_checkpoint: OpenCheckpoint | None = None,
    open_episodes: OpenEpisodes | None = None,
) -> CurationReport:
    """Run a curation, or continue one that was interrupted.

    Args:
        config: The recipe.
        plugins: Load and run its rewards.
        resume: Whether to continue where it stopped; rows that failed are tried again.
        open_checkpoint: Opens the model of an endpoint that is a `checkpoint`, such as `EngineModels.open`.
        open_episodes: Opens what plays the task of a step, such as `EngineModels.open_episodes`.

    Returns:
        The funnel. `kept.jsonl`, `dropped.jsonl` and `funnel.json` are in its directory.

    Raises:
        CurationError: If the directory belongs to another curation, recipe or data have changed, an endpoint
            refuses to answer, more rows failed than `max_error_share` allows, or a reward or domain does not
            exist.
        DataError: If the data cannot be read, or too many rows are broken.
        ConfigError: If the taxonomy or the dataset's YAML has problems.
        DiskFull: If there is no space; what was decided before is kept.

    Example:
        print(curate(load_curation("cold_start.yaml"), PLUGINS, resume=True).table())
    """
    taxonomy = load_taxonomy(config.taxonomy)
    check_recipe(config, taxonomy, plugins)
    dataset = load_samples(config.data, config.base_dir)
    with claimed(config, dataset, resume) as directory:
        opening = _Opening(open_checkpoint, open_episodes)
        return asyncio.run(_Curation(config, plugins, dataset, taxonomy, directory, opening).run())


@dataclass(frozen=True)
class _Opening:
    """What opens the models and episodes of a curation's checkpoints (see `curate`)."""

    checkpoint: OpenCheckpoint | None
    episodes: OpenEpisodes | None

    def model(self, name: str, entry: ModelEntry) -> AbstractAsyncContextManager[Model]:
        """Return the model of an entry of `endpoints`, as a context manager."""
        if isinstance(entry, EndpointConfig):
            return Endpoint(name, entry)
        if self.checkpoint is None or not isinstance(entry, CheckpointConfig):
            raise CurationError(
                f"endpoints.{name}: a checkpoint needs engines; pass `open_checkpoint`, or name a base_url"
            )
        return self.checkpoint(name, entry)

    def player(self, step: PlayingStep, entry: ModelEntry) -> PlaysEpisodes:
        """Return what plays a step's task."""
        assert isinstance(entry, CheckpointConfig)
        if self.episodes is None:
            raise CurationError(f"step {step.name}: episodes need engines; pass `open_episodes`")
        return self.episodes(step, entry)


class _Curation:
    """One curation at work, within its directory."""

    def __init__(
        self,
        config: CurationConfig,
        plugins: Plugins,
        dataset: Dataset,
        taxonomy: Taxonomy,
        directory: Path,
        opening: _Opening,
    ):
        self.config, self.dataset, self.taxonomy, self.directory = config, dataset, taxonomy, directory
        self.journals: list[Journal] = []
        self._plugins, self._opening = plugins, opening

    async def run(self) -> CurationReport:
        """Run all steps, then write the rows and the funnel."""
        with ExitStack() as stack:
            cache = AnswerCache(self.directory.parent / "answers.sqlite")
            stack.callback(cache.close)
            rewards = [ref for step in self.config.steps for _, ref in step.rewards()]
            scoring = stack.enter_context(Scoring(rewards, self._plugins, Path(self.config.base_dir)))
            for index, step in enumerate(self.config.steps):
                path = self.directory / "steps" / f"{index:02}-{step.name}.jsonl"
                journal = Journal(path, len(self.dataset))
                stack.callback(journal.close)
                await self._step(index, step, journal, cache, scoring)
                journal.sync()
                self.journals.append(journal)
            report = self._report()
            write_rows(report, self.dataset, self.config.steps, self.journals, self.current)
        write_atomic(
            self.directory / "funnel.json", json.dumps(report.to_json(), indent=1, ensure_ascii=False) + "\n"
        )
        return report

    def entering(self, index: int) -> Iterator[int]:
        """Yield the rows that come to a step, in order."""
        if index == 0:
            yield from range(len(self.dataset))
            return
        yield from (row for row, fate in enumerate(self.journals[index - 1].fate) if fate == KEPT)

    def current(self, row: int, index: int) -> Sample:
        """Return a row as it comes to a step, with the changes of the steps before."""
        sample = self.dataset[row]
        for journal in self.journals[:index]:
            if journal.fate[row] == KEPT and (changes := journal.outcome(row).changes):
                sample = changed(sample, changes)
        return sample

    async def _step(
        self, index: int, step: Step, journal: Journal, cache: AnswerCache, scoring: Scoring
    ) -> None:
        """Judge every row that has no verdict yet, several at a time."""
        rows = list(self.entering(index))  # 8 bytes a row
        todo = [row for row in rows if journal.fate[row] in (PENDING, FAILED)]
        if not todo:
            return
        allowed = int(self.config.max_error_share * len(rows))
        name = getattr(step, "endpoint", None)
        async with AsyncExitStack() as stack:
            models, episodes, at_once = {}, None, ROWS_AT_ONCE
            if name is not None:
                entry = self.config.endpoints[name]
                if isinstance(step, PlayingStep) and step.plays:
                    episodes = self._opening.player(step, entry)
                else:
                    model = await stack.enter_async_context(self._opening.model(name, entry))
                    models[name] = CachedModel(model, cache)
                samples = step.samples if isinstance(step, SamplingStep) else 1
                # Twice as many as are answered at a time, so that the model is busy while answers are scored.
                at_once = 2 * -(-entry.concurrency // samples)
            context = Context(
                self.taxonomy,
                scoring,
                lambda: ((row, self.current(row, index)) for row in rows),
                models,
                self.config.seed,
                episodes,
                self._tools_of(step),
                partial(keep_images, self.directory / IMAGES),
            )
            work = _StepWork(self, index, step, journal, FILTERS[step.filter](step, context), allowed)
            progress = tqdm(total=len(rows), initial=len(rows) - len(todo), desc=step.name, disable=None)
            stack.callback(progress.close)
            await work.run(todo, at_once, progress)

    def _tools_of(self, step: Step) -> list[ToolSpec]:
        """Return what a model is told of the tools that a step names, or whose calls become rows."""
        base_dir = Path(self.config.base_dir)
        told = step.tools if isinstance(step, CallTargetsStep) else []
        game = None
        if isinstance(step, RejectionStep) and step.task is not None:
            told, game = step.task.tools, step.task.environment
        tools = [*self._plugins.load_tools([tool.model_dump() for tool in told], base_dir)]
        if game is not None:
            tools += self._plugins.load_game(game.model_dump(), base_dir).tools
        return [tool.spec for tool in tools]

    def _report(self) -> CurationReport:
        """Count the rows of each step."""
        broken = len(self.dataset.broken)
        read = len(self.dataset) + broken
        steps = [
            StepCount("read", "read", read, broken, reasons=Counter({"broken": broken} if broken else {}))
        ]
        for index, (step, journal) in enumerate(zip(self.config.steps, self.journals, strict=True)):
            count = StepCount(step.name, step.filter, entered=0)
            for row in self.entering(index):
                count.entered += 1
                _count(count, journal, row)
            steps.append(count)
        report = CurationReport(self.config.name, self.directory, read, tuple(steps))
        assert all(a.kept == b.entered for a, b in itertools.pairwise(steps)), "rows were lost"
        return report


class _StepWork:
    """Judges the rows of one step, by several workers that take them from one queue."""

    def __init__(
        self, curation: _Curation, index: int, step: Step, journal: Journal, judge: Filter, allowed: int
    ):
        self._curation, self._index, self._step = curation, index, step
        self._journal, self._filter, self._allowed = journal, judge, allowed
        self._failed = 0

    async def run(self, todo: list[int], at_once: int, progress: tqdm) -> None:
        """Judge rows; an error that concerns more than one row ends the step.

        Args:
            todo: Numbers of the rows.
            at_once: Number of rows to judge at the same time.
            progress: Counts the rows that are done.

        Raises:
            CurationError: If too many rows failed, or no row can be judged.
        """
        rows = iter(todo)
        await all_or_first_failure(self._work(rows, progress) for _ in range(min(at_once, len(todo))))

    async def _work(self, rows: Iterator[int], progress: tqdm) -> None:
        """Judge rows until there are no more."""
        for row in rows:
            sample = self._curation.current(row, self._index)
            try:
                skipped = not applies(self._step, sample)
                outcome = Outcome(note="another domain") if skipped else await self._filter.judge(row, sample)
            except RowError as error:
                self._journal.append(row, sample.id, str(error))
                self._fail(str(error))
            else:
                self._journal.append(row, sample.id, outcome)
            progress.update()

    def _fail(self, reason: str) -> None:
        """Count a row that could not be judged; raises CurationError if there are too many."""
        self._failed += 1
        if self._failed > self._allowed:
            raise CurationError(
                f"step {self._step.name}: {self._failed:,} rows could not be judged, more than"
                f" max_error_share allows. The last: {reason}. What was decided is kept: fix the cause, then"
                " go on with --resume"
            )


def _count(count: StepCount, journal: Journal, row: int) -> None:
    """Add one row to a step's count."""
    fate = journal.fate[row]
    if fate == KEPT:
        outcome = journal.outcome(row)
        count.changed += bool(outcome.changes)
        if outcome.kept_as:
            count.kept_as[outcome.kept_as] += 1
        return
    assert fate in (DROPPED, FAILED), "a row was not judged"
    count.dropped += 1
    count.failed += fate == FAILED
    count.reasons[journal.outcome(row).reason if fate == DROPPED else "failed"] += 1
