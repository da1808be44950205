"""Short questions about numbers and letters, whose answers a rule can check.

They are what a small language model without a vision tower can learn by RL in minutes: the larger of two
numbers, a sum, three numbers in order, and a word spelled backwards. `write` is the generator behind
`datasets_cfg/texts_*.yaml`.
"""

import hashlib
import itertools
import json
import random
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from posttrain.files.strict_json import Json, JsonObject

Kind = Literal["larger", "sum", "sort", "backwards"]
Split = Literal["train", "test"]
#: Draws for each question that is wanted, before there are too few that differ.
DRAWS = 20
#: One question in so many is held out; which ones depends on the question alone, whatever the seed.
HELD_OUT = 8
SYSTEM = "Answer."


@dataclass(frozen=True)
class _Task:
    """A kind of question.

    Attributes:
        draw: Draws what is asked about.
        solve: Returns the right answer's parts.
        unordered: Whether it is the same question in another order.
        example: What the example that stands before each question asks about.
        form: How the question is written, with what it is about in place of `{}`.
        joint: What stands between the parts.
    """

    draw: Callable[[random.Random], list[str]]
    solve: Callable[[list[str]], list[str]]
    unordered: bool
    example: tuple[str, ...]
    form: str
    joint: str = ", "


def _numbers(count: int, most: int) -> Callable[[random.Random], list[str]]:
    """Return a function that draws different numbers from 1 to `most`."""
    return lambda rng: [str(number) for number in rng.sample(range(1, most + 1), count)]


def _word(rng: random.Random) -> list[str]:
    """Draw three to five letters, of which the first is not the last."""
    while True:
        letters = [rng.choice(string.ascii_lowercase) for _ in range(rng.randint(3, 5))]
        if letters[0] != letters[-1]:
            return letters


_TASKS: dict[Kind, _Task] = {
    "larger": _Task(_numbers(2, 999), lambda asked: [max(asked, key=int)], True, ("12", "305"), "larger: {}"),
    "sum": _Task(
        _numbers(2, 30), lambda asked: [str(sum(map(int, asked)))], True, ("12", "3"), "{} =", " + "
    ),
    "sort": _Task(_numbers(3, 99), lambda asked: sorted(asked, key=int), True, ("12", "30", "7"), "sort: {}"),
    "backwards": _Task(_word, lambda asked: asked[::-1], False, tuple("nut"), "backwards: {}", " "),
}


def questions(kind: Kind, split: Split, seed: int) -> Iterator[tuple[str, list[str]]]:
    """Yield questions of a kind with the parts of their answers, without end.

    No question is in both splits, also not with its numbers in another order.
    """
    task, rng = _TASKS[kind], random.Random(f"text-tasks/{kind}/{split}/{seed}")
    while True:
        asked = task.draw(rng)
        known = sorted(asked) if task.unordered else asked
        digest = hashlib.blake2b(f"{kind} {' '.join(known)}".encode(), digest_size=8).digest()
        if (int.from_bytes(digest) % HELD_OUT == 0) == (split == "test"):
            yield _asked(kind, asked), task.solve(asked)


def write(directory: Path, *, kind: Kind, split: Split, count: int, seed: int = 0) -> None:
    """Write `count` different questions of a kind to `directory/data.jsonl`.

    Args:
        directory: An existing, empty folder.
        kind: `larger` (of two numbers), `sum` (of two), `sort` (three numbers) or `backwards` (letters).
        split: `train`, or `test`, whose questions are never in `train`.
        count: Number of questions.
        seed: Seed of the questions.

    Raises:
        ValueError: If there is no such kind or split, or there are not so many questions.
    """
    if kind not in get_args(Kind) or split not in get_args(Split):
        raise ValueError(f"kind {kind!r} with split {split!r}: take {get_args(Kind)} and {get_args(Split)}")
    task, drawn = _TASKS[kind], dict(itertools.islice(questions(kind, split, seed), DRAWS * count))
    if len(drawn) < count:
        raise ValueError(
            f"count {count}: there are {len(drawn)} questions of kind {kind!r} in split {split!r}"
        )
    shown = [*task.example]
    example = (_asked(kind, shown), task.joint.join(task.solve(shown)))
    with (directory / "data.jsonl").open("w", encoding="utf-8") as file:
        for number, (question, parts) in enumerate(itertools.islice(drawn.items(), count)):
            turns = [("system", SYSTEM), ("user", example[0]), ("assistant", example[1]), ("user", question)]
            messages: list[Json] = [{"role": role, "content": text} for role, text in turns]
            # Of things in order a reward compares the list, of anything else the text.
            gold: Json = [*parts] if kind == "sort" else task.joint.join(parts)
            row: JsonObject = {"id": f"{split}-{kind}-{number}", "messages": messages, "ground_truth": gold}
            file.write(json.dumps(row) + "\n")


def _asked(kind: Kind, parts: list[str]) -> str:
    """Write a question."""
    task = _TASKS[kind]
    return task.form.format(task.joint.join(parts))
