"""The prompts of a distillation stage, as numbered questions to its teacher."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from posttrain.config import DistillationStage, RunConfig
from posttrain.data.dataset import Dataset
from posttrain.data.mixing import Mixture
from posttrain.data.renderable import RowCheck
from posttrain.data.sources import load_samples
from posttrain.data.uses import prompt_of, refusal, too_few_rows
from posttrain.inference.answers import Question
from posttrain.inference.engine import stable_seed
from posttrain.rendering.rendering import Renderer
from posttrain.rendering.same_tokens import token_difference
from posttrain.rendering.tools import tool_specs
from posttrain.types import Sample


class TeachingError(RuntimeError):
    """The teacher's answers cannot be had, or not learned from; the message says why and what to do."""


class TeacherPrompts:
    """A stage's prompts. Their questions are numbered from 0; those of one prompt follow each other.

    Args:
        config: The run's settings.
        stage: The stage's settings.
        check: Tells which prompts the student can be shown.

    Attributes:
        datasets: The datasets of the stage's mixture, by name.
        total: Number of questions: `samples_per_prompt` for each prompt.
    """

    def __init__(self, config: RunConfig, stage: DistillationStage, check: RowCheck) -> None:
        self._config, self._stage = config, stage
        self.datasets: dict[str, Dataset] = {
            name: load_samples(name, config.base_dir, check=check) for name in stage.data.mixture
        }
        self._chosen = chosen_prompts(self.datasets, stage, config.seed_of(stage))
        self._samples = stage.generation.samples_per_prompt
        self.total = len(self._chosen) * self._samples

    def dataset_of(self, number: int) -> str:
        """Return the name of the dataset that a question's prompt is from."""
        return self._chosen[number // self._samples][0]

    def sample(self, number: int) -> Sample:
        """Return the row that a question's prompt is from."""
        name, row = self._chosen[number // self._samples]
        return self.datasets[name][row]

    def place(self, number: int) -> int:
        """Return a question's place among those of its prompt, from 0."""
        return number % self._samples

    def question(self, number: int) -> Question:
        """Make a question."""
        sample = self.sample(number)
        seed = stable_seed(
            *(self._config.seed_of(self._stage), self._stage.shared_name),
            *(self.dataset_of(number), sample.id, self.place(number)),
        )
        return Question(number, prompt_of(sample), tuple(tool_specs(sample)), seed)

    def check(self) -> None:
        """Check that every prompt can be asked and learned from, before any is asked.

        Raises:
            TeachingError: Naming a sample with contents that the stage refuses, such as images or tools.
        """
        refused = {use.name: use.refused for use in self._stage.datasets() if use.refused}
        for name, row in self._chosen if refused else ():
            sample = self.datasets[name][row]
            if reason := refusal(sample, refused[name]):
                raise TeachingError(f"dataset {name}, sample {sample.id}: {reason}")


def chosen_prompts(
    datasets: Mapping[str, Dataset], stage: DistillationStage, seed: int
) -> list[tuple[str, int]]:
    """Choose the prompts: `num_prompts` of them in the mixture's ratios, or every row.

    Returns:
        Dataset and row of each prompt.

    Raises:
        TeachingError: If a dataset has too few rows for its share.
    """
    if stage.num_prompts is None:
        return [(name, row) for name, dataset in datasets.items() for row in range(len(dataset))]
    mixture = Mixture(datasets, stage.data.mixture, seed)
    drawn = [mixture.index(draw) for draw in range(stage.num_prompts)]
    for name, count in Counter(name for name, _ in drawn).items():
        if count > len(datasets[name]):
            reason = too_few_rows(f"num_prompts = {stage.num_prompts}", name, count, len(datasets[name]))
            raise TeachingError(f"stage {stage.name}: {reason}")
    return drawn


def check_same_tokens(student: Renderer, teacher: Path, config: RunConfig) -> None:
    """Check that a teacher's tokens mean the same to the student.

    Raises:
        TeachingError: If their vocabularies differ, or the opening of the answer that their prompts end with.
    """
    model = config.model.model_copy(update={"family": None})
    other = Renderer.from_config(teacher, model)
    remedy = "remove loss.top_k, to learn from the answers' text, or choose another teacher"
    if difference := token_difference(student, other):
        raise TeachingError(f"the teacher {teacher} {difference}; {remedy}")
    if (here := student.decode([])) != (there := other.decode([])):
        raise TeachingError(
            f"the prompts of the teacher {teacher} begin the answer with {there!r}, the student's with"
            f" {here!r}; {remedy}"
        )
