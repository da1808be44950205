"""The rows of a run's files: what each holds, and the one reader and writer of them.

`metrics.jsonl` has a `MetricsRow` a line, `evaluation.jsonl` an `EvaluationRow`, and the files of `rollouts/`
an `EpisodeRow`. A run may be at work, cut off by a crash, or of another version of posttrain: what a row
lacks has a neutral value, what it has in addition is passed over, and a line that is no row (the last one
may be half written) is handed to `on_broken`.
"""

import dataclasses
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self, TypeVar

from posttrain.failures import ToolFailure
from posttrain.files.durable import write_atomic
from posttrain.files.strict_json import Json, JsonObject
from posttrain.messages import message_from_json, message_to_json
from posttrain.run.estimates import Estimate, estimates_from_json, estimates_to_json
from posttrain.run.json_fields import integer, mapping, number, numbers, objects, text, texts
from posttrain.types import Message, RewardResult, ToolCall

METRICS, EVALUATION, ROLLOUTS = "metrics.jsonl", "evaluation.jsonl", "rollouts"
#: A line is read in pieces of this size, so that a damaged file cannot fill the memory.
MAX_LINE_BYTES = 8 << 20
#: What every row of metrics.jsonl has beside the figures.
METRICS_KEYS = ("stage", "step", "time")

logger = logging.getLogger(__name__)


class RowError(ValueError):
    """A line that is not a row of its file; the message says why."""


class Row(Protocol):
    """A row of one of the files."""

    @classmethod
    def from_json(cls, row: JsonObject) -> Self:
        """Read a row.

        Raises:
            ValueError: If the row lacks something that it means nothing without.
        """
        ...

    def to_json(self) -> JsonObject:
        """Return what stands in the file."""
        ...


AnyRow = TypeVar("AnyRow", bound=Row)


@dataclass(frozen=True)
class MetricsRow:
    """The figures of one step of a stage.

    Attributes:
        stage: The stage's name.
        step: Counted within the stage.
        time: When it was logged, in seconds since 1970; None where that is not known.
        figures: By name (see `metric_names`); None where a figure was not finite.
    """

    stage: str
    step: int
    time: float | None = None
    figures: dict[str, float | None] = field(default_factory=dict)

    @classmethod
    def from_json(cls, row: JsonObject) -> "MetricsRow":
        """Read a row; values that are no numbers are left out.

        Raises:
            ValueError: If the row has no step.
        """
        step = integer(row.get("step"))
        if step is None:
            raise ValueError("the row has no step")
        read = {name: number(value) for name, value in row.items() if name not in METRICS_KEYS}
        figures = {name: value for name, value in read.items() if value is not None or row[name] is None}
        return cls(text(row.get("stage")), step, number(row.get("time")), figures)

    def to_json(self) -> JsonObject:
        """Return what stands in the file."""
        times: JsonObject = {} if self.time is None else {"time": self.time}
        return {"stage": self.stage, "step": self.step, **times, **self.figures}


@dataclass(frozen=True)
class EvaluationRow:
    """How well one checkpoint did on one task.

    Attributes:
        stage: Name of the stage that made the checkpoint, or `base`.
        task: The task's name.
        step: The checkpoint's; 0 where it is not known.
        n: Number of prompts.
        accuracy: Share of the answers that are right; of several a prompt, the mean over prompts (mean@k).
        low, high: Its 95 % interval, with prompts as the unit.
        metrics: Means of everything else that was measured.
        seconds: How long it took; None where it was measured by the way.
        samples_per_prompt: Answers to each prompt.
        pass_at: By k, the chance that one of k answers to a prompt is right; only where there are several.
        difficulty: By bin of the rows' difficulty, the accuracy on its prompts; empty where rows have none.
    """

    stage: str
    task: str
    step: int = 0
    n: int | None = None
    accuracy: float | None = None
    low: float | None = None
    high: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None
    samples_per_prompt: int = 1
    pass_at: dict[str, Estimate] = field(default_factory=dict)
    difficulty: dict[str, Estimate] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, Estimate]:
        """What the row tells beside the accuracy: pass@k by `pass@<k>`, and accuracies by difficulty."""
        return {f"pass@{k}": estimate for k, estimate in self.pass_at.items()} | self.difficulty

    @property
    def place(self) -> tuple[str, str, int]:
        """What tells one evaluation from another: stage, task and step."""
        return self.stage, self.task, self.step

    @classmethod
    def from_json(cls, row: JsonObject) -> "EvaluationRow":
        """Read a row; figures that are no numbers are absent."""
        return cls(
            stage=text(row.get("stage")),
            task=text(row.get("task")),
            step=integer(row.get("step")) or 0,
            n=integer(row.get("n")),
            accuracy=number(row.get("accuracy")),
            low=number(row.get("low")),
            high=number(row.get("high")),
            metrics=numbers(row.get("metrics")),
            seconds=number(row.get("seconds")),
            samples_per_prompt=max(1, integer(row.get("samples_per_prompt")) or 1),
            pass_at=estimates_from_json(row.get("pass_at")),
            difficulty=estimates_from_json(row.get("difficulty")),
        )

    def to_json(self) -> JsonObject:
        """Return what stands in the file."""
        figures = {"n": self.n, "accuracy": self.accuracy, "low": self.low, "high": self.high}
        took: JsonObject = {} if self.seconds is None else {"seconds": self.seconds}
        place: JsonObject = {"stage": self.stage, "task": self.task, "step": self.step}
        told = {"pass_at": self.pass_at, "difficulty": self.difficulty}
        parts: JsonObject = {name: estimates_to_json(each) for name, each in told.items() if each}
        several: JsonObject = (
            {} if self.samples_per_prompt == 1 else {"samples_per_prompt": self.samples_per_prompt}
        )
        return {**place, **figures, **several, **parts, "metrics": {**self.metrics}, **took}


@dataclass(frozen=True)
class EpisodeRow:
    """One episode as it is kept for people: its messages and verdict, without its tokens.

    Attributes:
        stage: Name of the stage that played it, or whose checkpoint was evaluated.
        step: Of the stage; 0 in an evaluation.
        sample_id, task, group, episode: As in `Trajectory`.
        messages: Prompt and response; images inside the run's directory by their path in it.
        num_prompt_messages: How many of the messages are the prompt.
        tool_calls: Every call, in order.
        failures: Failures of the world, of an earlier attempt at the episode as well.
        ground_truth: The sample's.
        reward: The verdict; None where it was not scored.
        advantage: Relative to the group; None in an evaluation, and where the episode taught nothing.
        stop_reason: As in `Trajectory`.
        num_tokens, num_sampled: All tokens of the episode, and those that the policy sampled.
        version: Newest policy version that sampled.
    """

    stage: str
    step: int
    sample_id: str
    task: str
    group: int
    episode: int
    messages: tuple[Message, ...]
    num_prompt_messages: int
    tool_calls: tuple[ToolCall, ...] = ()
    failures: tuple[ToolFailure, ...] = ()
    ground_truth: Json = None
    reward: RewardResult | None = None
    advantage: float | None = None
    stop_reason: str = ""
    num_tokens: int | None = None
    num_sampled: int | None = None
    version: int | None = None

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages before the model's first turn."""
        return self.messages[: self.num_prompt_messages]

    @property
    def response(self) -> tuple[Message, ...]:
        """The turns that followed."""
        return self.messages[self.num_prompt_messages :]

    @property
    def total(self) -> float | None:
        """The weighted sum of the rewards; None where it was not scored, or a reward failed."""
        return None if self.reward is None else self.reward.total

    @classmethod
    def from_json(cls, row: JsonObject) -> "EpisodeRow":
        """Read a row.

        Raises:
            ValueError: If the messages are not in the canonical form.
        """
        messages = row.get("messages")
        if not isinstance(messages, list):
            raise ValueError("the row has no messages")
        return cls(
            stage=text(row.get("stage")),
            step=integer(row.get("step")) or 0,
            sample_id=text(row.get("sample_id")),
            task=text(row.get("task")),
            group=integer(row.get("group")) or 0,
            episode=integer(row.get("episode")) or 0,
            messages=tuple(message_from_json(mapping(message)) for message in messages),
            num_prompt_messages=max(0, integer(row.get("num_prompt_messages")) or 0),
            tool_calls=tuple(_tool_call(call) for call in objects(row.get("tool_calls"))),
            failures=tuple(_failure(each) for each in objects(row.get("failures"))),
            ground_truth=row.get("ground_truth"),
            reward=_reward(row.get("reward")),
            advantage=number(row.get("advantage")),
            stop_reason=text(row.get("stop_reason")),
            num_tokens=integer(row.get("num_tokens")),
            num_sampled=integer(row.get("num_sampled")),
            version=integer(row.get("version")),
        )

    def to_json(self) -> JsonObject:
        """Return what stands in the file."""
        row: JsonObject = {key.name: getattr(self, key.name) for key in dataclasses.fields(self)}
        row["messages"] = [message_to_json(message) for message in self.messages]
        row["tool_calls"] = [_timed(call) for call in self.tool_calls]
        row.pop("failures")
        if self.failures:
            row["failures"] = [_timed(each) for each in self.failures]
        row["reward"] = dataclasses.asdict(self.reward) if self.reward else None
        return row


def _timed(happened: ToolCall | ToolFailure) -> JsonObject:
    """Return a call or a failure, with its seconds where they are known."""
    row = dataclasses.asdict(happened)
    if happened.seconds is None:
        del row["seconds"]
    return row


def _tool_call(call: JsonObject) -> ToolCall:
    return ToolCall(
        name=text(call.get("name")),
        arguments=mapping(call.get("arguments")),
        ok=bool(call.get("ok")),
        error=text(call.get("error")),
        images=max(0, integer(call.get("images")) or 0),
        seconds=number(call.get("seconds")),
    )


def _failure(failure: JsonObject) -> ToolFailure:
    return ToolFailure(text(failure.get("tool")), text(failure.get("reason")), number(failure.get("seconds")))


def _reward(reward: Json) -> RewardResult | None:
    if not isinstance(reward, dict):
        return None
    return RewardResult(
        total=number(reward.get("total")),
        values={name: number(value) for name, value in mapping(reward.get("values")).items()},
        parts={name: numbers(parts) for name, parts in mapping(reward.get("parts")).items()},
        notes=texts(reward.get("notes")),
        errors=texts(reward.get("errors")),
    )


def with_image_paths(message: Message, change: Callable[[str], str]) -> Message:
    """Return a message whose images have other paths."""
    blocks = (
        block
        if block.image is None
        else dataclasses.replace(block, image=dataclasses.replace(block.image, path=change(block.image.path)))
        for block in message.content
    )
    return dataclasses.replace(message, content=tuple(blocks))


def parse_row(line: bytes, kind: type[AnyRow]) -> AnyRow:
    """Read one line of a file.

    Raises:
        RowError: If the line is no such row.
    """
    try:
        value = json.loads(line)
        if not isinstance(value, dict):
            raise RowError(f"a {type(value).__name__} where an object should be")
        return kind.from_json(value)
    except (ValueError, RecursionError) as error:
        raise RowError(str(error)) from error


def warn_of_broken(path: Path, reason: str) -> None:
    """Log that a line was passed over."""
    logger.warning("%s: passing over a line that cannot be read: %s", path, reason)


def read_rows(
    path: Path, kind: type[AnyRow], on_broken: Callable[[Path, str], None] = warn_of_broken
) -> Iterator[AnyRow]:
    """Read a file line by line; one that is not there has no rows. See `numbered_rows`.

    Example:
        rows = list(read_rows(run.path / METRICS, MetricsRow))
    """
    for _, row in numbered_rows(path, kind, on_broken):
        yield row


def numbered_rows(
    path: Path, kind: type[AnyRow], on_broken: Callable[[Path, str], None] = warn_of_broken
) -> Iterator[tuple[int, AnyRow]]:
    """Read a file's rows with the numbers of their lines, from 1; one that is not there has no rows.

    Args:
        path: The file.
        kind: Class of its rows.
        on_broken: Called with the path and the reason for every line that is no row; it may raise.
    """
    for at, line in _lines(path):
        try:
            row = parse_row(line, kind)
        except RowError as error:
            on_broken(path, str(error))
        else:
            yield at, row


def line_of(path: Path, wanted: int) -> str:
    """Return a line of a file by its number, from 1; "" where there is none."""
    return next((line.decode("utf-8", "replace") for at, line in _lines(path) if at == wanted), "")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank with their numbers; one beyond the limit comes in pieces."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        at, ended = 0, True
        while line := file.readline(MAX_LINE_BYTES):
            at += ended
            ended = line.endswith(b"\n")
            if line.strip():
                yield at, line


def row_line(row: Row) -> str:
    """Return a row as a line of its file."""
    return json.dumps(row.to_json(), ensure_ascii=False) + "\n"


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write a whole file, or leave an earlier one as it is.

    Raises:
        DiskFull: If there is no space.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(map(row_line, rows)))
