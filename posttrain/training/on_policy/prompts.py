"""The prompts of each step: the next of the mixture, those that leave no room for an answer replaced."""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from posttrain.config import DatasetConfig, OnPolicyStage, RunConfig
from posttrain.data.formats import DataError
from posttrain.data.mixing import REPLACEMENTS, Mixture
from posttrain.data.renderable import RowCheck
from posttrain.data.sources import load_samples
from posttrain.inference.engine import stable_seed
from posttrain.rendering.row_checks import KnownRenderer, RenderCheck
from posttrain.rollout.episode import Limits
from posttrain.rollout.jobs import GroupJob

logger = logging.getLogger(__name__)

#: Counts the tokens of prompts, by the group's index.
MeasurePrompts = Callable[[Sequence[GroupJob]], Mapping[int, int]]


@dataclass
class Drawn:
    """A step's prompts, which rounds of refilling change.

    Attributes:
        step: The step.
        groups: Its groups, each in its place.
        rows: The task and the row of every prompt that was drawn for the step so far.
        turns: By place, how many rows of `Mixture.replacement` were tried there.
        left_out: How many prompts were left out since they are too long.
    """

    step: int
    groups: list[GroupJob]
    rows: set[tuple[str, int]]
    turns: list[int]
    left_out: int = 0


class PromptsAhead:
    """Draws and measures the prompts of the next step in a thread, while the engines play those before.

    Args:
        draw: Draws the prompts of a step.
        last: The last step.
    """

    def __init__(self, draw: Callable[[int], Drawn], last: int) -> None:
        self._draw, self._last = draw, last
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prompts")
        self._next: dict[int, Future[Drawn]] = {}

    def take(self, step: int) -> Drawn:
        """Return the prompts of a step, and begin to draw those of the next one."""
        drawn = self._next.pop(step, None) or self._thread.submit(self._draw, step)
        result = drawn.result()
        if step < self._last and step + 1 not in self._next:
            self._next[step + 1] = self._thread.submit(self._draw, step + 1)
        return result

    def close(self) -> None:
        """Draw no more, without waiting for what is being drawn.

        Its prompts may wait for an engine that serves nothing until the next publish, which does not come any
        more. The thread ends once the engines are closed.
        """
        self._thread.shutdown(wait=False, cancel_futures=True)


class StepPrompts:
    """Draws each step's prompts; which they are depends on the seed and the step alone.

    A prompt that leaves no room for an answer within its task's `max_length` is left out, and replaced by the
    next of the same task that fits (see `Mixture.replacement`). So one image that is too large does not end
    the run, and every step has all its groups.

    Args:
        mixture: Tells which task and row each draw is.
        stage: The stage's settings.
        seed: The stage's seed.
        measure: Counts the tokens of prompts.
    """

    def __init__(self, mixture: Mixture, stage: OnPolicyStage, seed: int, measure: MeasurePrompts) -> None:
        self._mixture = mixture
        self._stage = stage
        self._seed = seed
        self._measure = measure
        self._datasets = {task.name: task.data for task in stage.tasks}
        self._limits = {task.name: Limits.of_task(task, stage.rollout) for task in stage.tasks}
        self._told = False

    def of_step(self, step: int) -> Drawn:
        """Draw a step's groups.

        Raises:
            DataError: If REPLACEMENTS prompts in a row leave no room for an answer.
            EpisodeError: If a prompt cannot be shown to the model.
        """
        count = self._stage.prompts_per_step
        rows = [self._mixture.index((step - 1) * count + place) for place in range(count)]
        groups = [self._group(step, place, *row) for place, row in enumerate(rows)]
        drawn = Drawn(step, groups, set(rows), [0] * count)
        self._replace_too_long(drawn, groups, 0)
        return drawn

    def refill(self, drawn: Drawn, places: Sequence[int], turn: int) -> list[GroupJob]:
        """Put further prompts of the same tasks in some places of a step; return their groups.

        Which they are is a function of seed, step, round and the places that were refilled until then. No
        row comes twice in a step; a place whose task has no more of them keeps what it has.

        Args:
            drawn: The step; it is changed.
            places: Of the groups that are replaced.
            turn: The round, counted from 1.

        Raises:
            DataError, EpisodeError: As `of_step` says.
        """
        groups = [group for place in places if (group := self._new_row(drawn, place, turn)) is not None]
        for group in groups:
            drawn.groups[group.group] = group
        self._replace_too_long(drawn, groups, turn)
        return [drawn.groups[group.group] for group in groups]

    def _new_row(self, drawn: Drawn, place: int, turn: int) -> GroupJob | None:
        """Return a group of the next row that the step has not had yet; None if there is none."""
        task = drawn.groups[place].task
        left = len(self._mixture.datasets[task]) - sum(name == task for name, _ in drawn.rows)
        for _ in range(REPLACEMENTS if left else 0):
            task, row = self._next_row(drawn, place)
            if (task, row) not in drawn.rows:
                drawn.rows.add((task, row))
                return self._group(drawn.step, place, task, row, turn)
        return None

    def _next_row(self, drawn: Drawn, place: int) -> tuple[str, int]:
        """Return the next row that may take a place."""
        count = self._stage.prompts_per_step
        draw, draws = (drawn.step - 1) * count + place, self._stage.max_steps * count
        drawn.turns[place] += 1
        return drawn.groups[place].task, self._mixture.replacement(draw, drawn.turns[place], draws)

    def _replace_too_long(self, drawn: Drawn, groups: Sequence[GroupJob], turn: int) -> None:
        """Replace those of a step's groups whose prompts leave no room for an answer."""
        tried, unmeasured = 0, groups
        while too_long := self._too_long(unmeasured):
            tried += 1
            drawn.left_out += len(too_long)
            if tried > REPLACEMENTS:
                last, tokens = too_long[0]
                raise DataError(
                    f"dataset {self._datasets[last.task]}: {tried} prompts one after another leave no room"
                    f" for an answer; the last, row {last.sample.id!r}, has {tokens} tokens. Raise"
                    f" stages.{self._stage.name}.{self._length_of(last.task)}, lower"
                    " model.max_pixels or model.video_max_tokens, or filter the dataset"
                )
            places = [long.group for long, _ in too_long]
            rows = [self._next_row(drawn, place) for place in places]
            drawn.rows.update(rows)
            unmeasured = [
                self._group(drawn.step, place, *row, turn) for place, row in zip(places, rows, strict=True)
            ]
            for group in unmeasured:
                drawn.groups[group.group] = group

    def _length_of(self, task: str) -> str:
        """Return the key and the value of a task's most tokens of an episode."""
        number, own = next((i, each) for i, each in enumerate(self._stage.tasks) if each.name == task)
        key = f"tasks[{number}].max_length" if own.max_length else "rollout.max_length"
        return f"{key} = {self._limits[task].max_length}"

    def _group(self, step: int, place: int, task: str, row: int, turn: int = 0) -> GroupJob:
        """Make the group of a row in its place of a step; in further rounds it has a seed of its own."""
        seed = stable_seed(self._seed, self._stage.shared_name, step, place, *([turn] if turn else []))
        sample = self._mixture.datasets[task][row]
        return GroupJob(place, task, sample, self._stage.episodes_per_prompt, seed)

    def _too_long(self, groups: Sequence[GroupJob]) -> list[tuple[GroupJob, int]]:
        """Return the groups whose prompts leave no room for an answer, with their tokens; name the first."""
        tokens = self._measure(groups)
        found = [
            (group, tokens[group.group])
            for group in groups
            if not self._limits[group.task].leave_room(tokens[group.group])
        ]
        if found and not self._told:
            self._told = True
            group, length = found[0]
            logger.warning(
                "stage %s: row %r of dataset %s has a prompt of %d tokens, which leaves no room for an answer"
                " in %s; it is left out and replaced by the next. All such prompts are counted in"
                " data/left_out; raise it, or lower model.max_pixels or model.video_max_tokens, to keep them",
                *(self._stage.name, group.sample.id, self._datasets[group.task], length),
                self._length_of(group.task),
            )
        return found


def stage_prompts(
    config: RunConfig,
    stage: OnPolicyStage,
    measure: MeasurePrompts,
    checkpoint: Path,
    curated: Mapping[str, DatasetConfig] = MappingProxyType({}),
) -> StepPrompts:
    """Open the data of a stage, and return the prompts of its steps.

    Args:
        config: The run's settings.
        stage: The stage's.
        measure: Counts the tokens of prompts.
        checkpoint: Where the policy's processor is.
        curated: What takes the place of datasets, by their name.
    """
    check: RowCheck = RenderCheck(KnownRenderer(checkpoint, config.model), "episodes")
    samples = {
        task.name: load_samples(
            curated.get(task.data, task.data), config.base_dir, use="episodes", check=check
        )
        for task in stage.tasks
    }
    mixture = Mixture(samples, {task.name: task.ratio for task in stage.tasks}, seed=config.seed_of(stage))
    return StepPrompts(mixture, stage, config.seed_of(stage), measure)
