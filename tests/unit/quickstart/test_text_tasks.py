"""Questions in text: canonical rows, right answers, and held-out questions that training never sees."""

import itertools
import json
from pathlib import Path
from typing import get_args

import pytest

from posttrain.data.formats import read_canonical
from posttrain.quickstart import text_tasks
from posttrain.types import RewardInput, Score
from rewards.sdk import load_reward

KINDS = get_args(text_tasks.Kind)


def solved(kind: str, question: str) -> str:
    """Solve a question by itself, from its text alone."""
    if kind == "sum":
        return str(eval(question.rstrip("= ")))
    asked = question.partition(": ")[2]
    if kind == "backwards":
        return asked[::-1]
    numbers = [int(number) for number in asked.split(", ")]
    return str(max(numbers)) if kind == "larger" else ", ".join(map(str, sorted(numbers)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_right_answer_earns_full_marks_and_others_do_not(tmp_path: Path, kind: text_tasks.Kind) -> None:
    text_tasks.write(tmp_path, kind=kind, split="train", count=50)
    samples = list(read_canonical(tmp_path / "data.jsonl"))
    assert len({sample.messages[-1].text for sample in samples}) == 50
    reward = load_reward("ordering" if kind == "sort" else "answer_accuracy")
    for sample, other in itertools.pairwise(samples):
        _, example, shown, asked = sample.messages
        assert shown.text == solved(kind, example.text)
        scores = []
        for answer in (solved(kind, asked.text), solved(kind, other.messages[-1].text)):
            verdict = reward(
                RewardInput(
                    prompt=sample.messages, response=(), answer=answer, ground_truth=sample.ground_truth
                )
            )
            assert isinstance(verdict, Score)
            scores.append(verdict.value)
        assert scores[0] == 1.0
        assert scores[1] < 1.0 or answer == solved(kind, asked.text)


@pytest.mark.parametrize("kind", KINDS)
def test_no_held_out_question_is_trained_on_in_any_order(kind: text_tasks.Kind) -> None:
    def known(split: text_tasks.Split, seed: int, count: int) -> set[str]:
        drawn = itertools.islice(text_tasks.questions(kind, split, seed), count)
        return {question if kind == "backwards" else str(sorted(question.split())) for question, _ in drawn}

    held = known("test", 0, 50)
    assert not held & (known("train", 0, 3000) | known("train", 1, 3000))
    assert held == known("test", 0, 50)
    assert held != known("test", 1, 50)


def test_what_there_is_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kind 'product'"):
        text_tasks.write(tmp_path, kind="product", split="train", count=1)  # pyright: ignore
    with pytest.raises(ValueError, match=r"there are \d+ questions of kind 'sum' in split 'test'"):
        text_tasks.write(tmp_path, kind="sum", split="test", count=500)
    with pytest.raises(ValueError, match="split 'sft'"):
        text_tasks.write(tmp_path, kind="sum", split="sft", count=1)  # pyright: ignore


def test_rows_are_the_same_for_every_run(tmp_path: Path) -> None:
    text_tasks.write(tmp_path, kind="sum", split="test", count=1, seed=0)
    [row] = map(json.loads, (tmp_path / "data.jsonl").read_text().splitlines())
    assert [message["content"] for message in row["messages"][:3]] == ["Answer.", "12 + 3 =", "15"]
    assert row["messages"][3]["content"] == "29 + 3 ="
