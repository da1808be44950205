"""Finding and comparing final answers: answers and answer_accuracy."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.messages import without_thinking
from posttrain.types import RewardInput, ToolCall
from rewards.builtin.answer_accuracy import answer_accuracy
from rewards.reading.answers import final_answer, normalise

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def episode(answer: str, gold: Any = None, calls: tuple[ToolCall, ...] = (), **columns: Any) -> RewardInput:
    return RewardInput((), (), answer, ground_truth=gold, tool_calls=calls, columns=columns)


def accuracy(answer: str, gold: Any) -> float:
    score = answer_accuracy(episode(answer, gold))
    assert score is not None
    return score.value


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("K", "K"),
        ("<think>A or B?</think>\nThe answer is K.", "K."),
        ("A or B?</think>Answer: K", "K"),
        ("<think>it never ends: Answer: K", ""),
        ("<answer>A</answer> no, <answer>B</answer>", "B"),
        ("<answer>so \\boxed{\\frac{1}{2}}</answer>", "\\frac{1}{2}"),
        ("\\boxed{1} or rather \\boxed{\\sqrt{2}}, Answer: 3", "\\sqrt{2}"),
        ("\\boxed{never closed", "\\boxed{never closed"),
        ("Reasons.\n\nanswer:\n K \n", "K"),
        ("答案是：四", "四"),
        ("first line\nlast line\n\n", "last line"),
        ("\\boxed{1} or \\boxed{2}", "1, 2"),
        ("x=\\boxed{1}$, $x=\\boxed{2}", "1, 2"),
        ("First \\boxed{1}. Checking again, \\boxed {2}", "2"),
        ("\\boxed{1}\\fbox{2}", "1, 2"),
        ("**Answer: K**", "K"),
        ("**Answer:** K\nBye", "K"),
        ("### Final answer\n\nK", "K"),
        ("The answer to both is: K", "K"),
        ("#### 12", "12"),
        ("Answer:\n\\[\nx\n\\]\nDone.", "x"),
        ("So\n$$\na \\\\[4pt] b\n$$", "a \\\\[4pt] b"),
        ("So\n\\[\na \\\\[4pt] b\n\\]", "a \\\\[4pt] b"),
        ("故选：C。", "C。"),
        ("答：四个", "四个"),
        ("【答案】四", "四"),
        ("Answer:", "Answer:"),
        ("", ""),
    ],
)
def test_final_answer(text: str, answer: str) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "<answer>" * 50_000,
        "\\boxed{" * 50_000,
        "\\boxed{1}" * 20_000,
        "\\boxed{1}" + " " * 100_000 + "x \\boxed{2}",
        "answer is " * 20_000,
        "答案" * 50_000,
        "故" * 50_000,
        "#* " * 50_000,
        "$$" * 50_000,
        "\\[" * 50_000 + "\\]",
    ],
    ids=lambda text: text[:10],
)
def test_final_answer_is_found_in_linear_time(text: str) -> None:
    begun = time.process_time()
    final_answer(text)
    assert time.process_time() - begun < 2


@pytest.mark.parametrize(
    ("answer", "gold", "value"),
    [
        ("  red   Marker. ", "Red marker", 1),
        ("ＲＥＤ", "red", 1),
        ("**K**", "K", 1),
        ("(b)", "B", 1),
        ("B. The red marker", "B", 1),
        ("Bananas", "B", 0),
        ("A or B", "B", 0),
        ("A B C D", "B", 0),
        ("Answer: A\nAnswer: B", "A", 0),
        ("4", 4, 1),
        ("four", [4, "four"], 1),
        (".5", "5", 0),
        ("-5", "5", 0),
        ("", "K", 0),
        ("<think>K", "K", 0),
        ("K" * 10_000, "K", 0),
    ],
)
def test_answer_accuracy(answer: str, gold: Any, value: float) -> None:
    assert accuracy(answer, gold) == value


@given(TEXT.filter(lambda gold: gold.strip()), TEXT)
def test_gold_earns_everything_and_nothing_earns_nothing(gold: str, other: str) -> None:
    assert accuracy(gold, gold) == 1.0
    assert accuracy(f"  {gold}\n", gold) == 1.0
    assert accuracy("", gold) == 0.0
    assert accuracy(other, gold) in (0.0, 1.0)
    assert normalise(final_answer(other)) == normalise(final_answer(without_thinking(other)))


@pytest.mark.parametrize("gold", ["", "  ", [], [""], {"a": 1}, ["a", None]])
def test_a_broken_ground_truth_is_an_error(gold: Any) -> None:
    with pytest.raises(ValueError, match="ground_truth"):
        accuracy("K", gold)


def test_without_ground_truth_it_does_not_apply() -> None:
    assert answer_accuracy(episode("K")) is None
