"""What became of every prompt of an evaluation, as its episodes in `rollouts/` tell it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from posttrain.files.strict_json import Json
from posttrain.run.record import RunRecord
from posttrain.run.rows import EVALUATION, ROLLOUTS, EpisodeRow, EvaluationRow, read_rows
from posttrain.types import ImageRef


class OutcomesError(ValueError):
    """Evaluations that are not recorded, or that cannot be compared; the message says why."""


@dataclass(frozen=True)
class Outcome:
    """A prompt and the answers to it.

    Attributes:
        question: The prompt's text.
        images: Its images, by path and hash.
        gold: What is right.
        right: How many answers are.
        answers: The last turn of each.
    """

    question: str
    images: tuple[ImageRef, ...]
    gold: Json
    right: int
    answers: tuple[str, ...]

    @property
    def share(self) -> float:
        """Share of the answers that are right."""
        return self.right / len(self.answers)

    def same_prompt(self, other: "Outcome") -> bool:
        """Tell whether two outcomes are of one prompt: text, gold, and images as far as their hashes tell."""
        hashes = zip(self.images, other.images, strict=False)
        alike = all(one.sha256 == another.sha256 for one, another in hashes if one.sha256 and another.sha256)
        told = (self.question, self.gold, len(self.images)) == (
            *(other.question, other.gold),
            len(other.images),
        )
        return told and alike


#: By the id of a prompt's row.
Outcomes = Mapping[str, Outcome]


def episodes_file(run: Path, stage: str, task: str) -> Path:
    """Return where the episodes of an evaluation of a stage's last checkpoint are."""
    return run / ROLLOUTS / f"evaluation-{stage}-{task}.jsonl"


def measured(run: Path) -> dict[str, list[str]]:
    """Return the tasks that each stage of a run was measured on by episodes, in the order of measuring."""
    found: dict[str, list[str]] = {}
    for row in read_rows(run / EVALUATION, EvaluationRow):
        tasks = found.setdefault(row.stage, [])
        if row.task not in tasks and episodes_file(run, row.stage, row.task).is_file():
            tasks.append(row.task)
    return {stage: tasks for stage, tasks in found.items() if tasks}


def read_outcomes(run: Path, record: RunRecord, stage: str, task: str) -> dict[str, Outcome]:
    """Read what became of the prompts of a stage's last evaluation on a task.

    Args:
        run: The run's directory.
        record: Its settings, which name the reward that judges.
        stage: The stage.
        task: The task.

    Raises:
        OutcomesError: If there are no episodes, or one was not scored.
    """
    path = episodes_file(run, stage, task)
    judge = record.judges.get(task, "answer_accuracy")
    found: dict[str, Outcome] = {}
    for row in read_rows(path, EpisodeRow):
        verdict = None if row.reward is None else row.reward.values.get(judge)
        if verdict is None:
            raise OutcomesError(f"{path}: an answer to prompt {row.sample_id!r} has no {judge}")
        before = found.get(row.sample_id)
        found[row.sample_id] = Outcome(
            question="\n".join(message.text for message in row.prompt if message.role == "user"),
            images=tuple(
                ImageRef(str(run.absolute() / image.path), image.sha256)
                for message in row.prompt
                for image in message.images
            ),
            gold=row.ground_truth,
            right=int(verdict == 1.0) + (before.right if before else 0),
            answers=(*(before.answers if before else ()), _last_turn(row)),
        )
    if not found:
        raise OutcomesError(f"{path} has no episodes: the evaluation was not finished, or they were removed")
    return found


def pooled(several: Sequence[Outcomes]) -> dict[str, Outcome]:
    """Return outcomes of the same prompts as if one model had given all the answers: of several seeds, say.

    Raises:
        OutcomesError: If the prompts differ.
    """
    result = dict(several[0])
    for outcomes in several[1:]:
        check_same_prompts(result, outcomes)
        result = {
            name: Outcome(
                *(one.question, one.images, one.gold, one.right + outcomes[name].right),
                one.answers + outcomes[name].answers,
            )
            for name, one in result.items()
        }
    return result


def check_same_prompts(first: Outcomes, second: Outcomes) -> None:
    """Refuse to compare answers to different prompts.

    Raises:
        OutcomesError: Saying how they differ.
    """
    alone, others = ([name for name in one if name not in other] for one, other in _both(first, second))
    changed = [name for name in first if name in second and not first[name].same_prompt(second[name])]
    if not (alone or others or changed):
        return
    told = [
        f"{len(names)} {what}, such as {names[0]!r}"
        for names, what in (
            (alone, "are only in the first"),
            (others, "are only in the second"),
            (changed, "have one id and another text, image or gold"),
        )
        if names
    ]
    raise OutcomesError(
        f"the prompts are not the same: of {len(first)} and {len(second)}, {'; '.join(told)}. Measure both"
        " on the same rows: the same dataset, num_samples and rollout.max_length"
    )


def _both(first: Outcomes, second: Outcomes) -> tuple[tuple[Outcomes, Outcomes], tuple[Outcomes, Outcomes]]:
    return (first, second), (second, first)


def _last_turn(row: EpisodeRow) -> str:
    return next((message.text for message in reversed(row.response) if message.role == "assistant"), "")
