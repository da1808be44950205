"""The prompts of each step: the next of the mixture, those that leave no room for an answer replaced."""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from posttrain.config import OnPolicyStage
from posttrain.data.formats import DataError
from posttrain.data.mixing import REPLACEMENTS, Mixture
from posttrain.inference.engine import stable_seed
from posttrain.rollout.episode import Limits
from posttrain.rollout.jobs import GroupJob

logger = logging.getLogger(__name__)

#: Counts the tokens of prompts, by the group's index.
MeasurePrompts = Callable[[Sequence[GroupJob]], Mapping[int, int]]

#: A step's groups, and how many prompts were left out.
Drawn = tuple[list[GroupJob], int]


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
        """End the thread."""
        self._thread.shutdown(cancel_futures=True)


class StepPrompts:
    """Draws each step's prompts; which they are depends on the seed and the step alone.

    A prompt that leaves no room for an answer within `rollout.max_length` is left out, and replaced by the
    next of the same task that fits (see `Mixture.replacement`). So one image that is too large does not end
    the run, and every step has all its groups.

    Args:
        mixture: Tells which task and row each draw is.
        stage: The stage's settings.
        seed: The run's seed.
        measure: Counts the tokens of prompts.
    """

    def __init__(self, mixture: Mixture, stage: OnPolicyStage, seed: int, measure: MeasurePrompts) -> None:
        self._mixture = mixture
        self._stage = stage
        self._seed = seed
        self._measure = measure
        self._datasets = {task.name: task.data for task in stage.tasks}
        self._limits = Limits(stage.rollout.max_new_tokens, stage.rollout.max_length)
        self._told = False

    def of_step(self, step: int) -> Drawn:
        """Draw a step's groups; return them, and how many prompts were left out.

        Raises:
            DataError: If REPLACEMENTS prompts in a row leave no room for an answer.
            EpisodeError: If a prompt cannot be shown to the model.
        """
        count = self._stage.prompts_per_step
        first = (step - 1) * count
        groups = [self._group(step, group, *self._mixture.index(first + group)) for group in range(count)]
        left_out, turn, unmeasured = 0, 0, groups
        while too_long := self._too_long(unmeasured):
            turn += 1
            left_out += len(too_long)
            if turn > REPLACEMENTS:
                last, tokens = too_long[0]
                raise DataError(
                    f"dataset {self._datasets[last.task]}: {turn} prompts one after another leave no room for"
                    f" an answer; the last, row {last.sample.id!r}, has {tokens} tokens. Raise"
                    f" stages.{self._stage.name}.rollout.max_length = {self._limits.max_length}, lower"
                    " model.max_pixels, or filter the dataset"
                )
            draws = self._stage.max_steps * count
            unmeasured = [
                self._group(
                    step,
                    long.group,
                    long.task,
                    self._mixture.replacement(first + long.group, turn, draws),
                )
                for long, _ in too_long
            ]
            for group in unmeasured:
                groups[group.group] = group
        return groups, left_out

    def _group(self, step: int, group: int, task: str, row: int) -> GroupJob:
        """Make the group of a row in its place of a step."""
        seed = stable_seed(self._seed, self._stage.name, step, group)
        sample = self._mixture.datasets[task][row]
        return GroupJob(group, task, sample, self._stage.episodes_per_prompt, seed)

    def _too_long(self, groups: Sequence[GroupJob]) -> list[tuple[GroupJob, int]]:
        """Return the groups whose prompts leave no room for an answer, with their tokens; name the first."""
        tokens = self._measure(groups)
        found = [
            (group, tokens[group.group])
            for group in groups
            if not self._limits.leave_room(tokens[group.group])
        ]
        if found and not self._told:
            self._told = True
            group, length = found[0]
            logger.warning(
                "stage %s: row %r of dataset %s has a prompt of %d tokens, which leaves no room for an answer"
                " in rollout.max_length = %d; it is left out and replaced by the next. All such prompts are"
                " counted in data/left_out; raise rollout.max_length or lower model.max_pixels to keep them",
                *(self._stage.name, group.sample.id, self._datasets[group.task], length),
                self._limits.max_length,
            )
        return found
