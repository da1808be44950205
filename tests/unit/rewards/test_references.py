"""References are read as answers are, in every reward that has one."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.types import RewardInput
from rewards.reading.references import references, unwrapped
from rewards.sdk import load_reward

WRAPPINGS = [
    "<answer>{}</answer>", "\\boxed{{{}}}", "$\\boxed{{{}}}$", "The answer is {}.", "Answer: {}",
    "**Answer:** {}", "#### {}", "She sold 48/2 = <<48/2=24>>24 of them.\n#### {}",
    "We add both.\nSo the final answer is {}.", "答案是{}。", "答案：{}",
    "<think>hard</think><answer>{}</answer>", "La réponse est {}.", "Ответ: {}", "答えは{}です。",
    "\\boxed{{\\text{{{}}}}}",
]  # fmt: skip
#: A bare reference for each reward, a right answer to it, and a wrong one.
BARE: dict[str, tuple[str, str, str]] = {
    "math": ("65", "65", "56"),
    "multiple_choice": ("C", "(C)", "A"),
    "answer_accuracy": ("Lima", "the answer is Lima", "Quito"),
    "exact_match": ("R2D2", "R2D2", "C3PO"),
    "anls": ("Goya", "Goya", "Dali"),
    "counting": ("6", "six", "7"),
    "clock": ("4:20", "4:20", "9:05"),
    "set_match": ("ash, fir", "fir, ash", "yew"),
}


def value(reward: str, gold: Any, answer: str) -> float:
    score = load_reward(reward)(RewardInput((), (), answer, ground_truth=gold))
    assert score is not None
    return score.value


@pytest.mark.parametrize("reward", BARE)
@pytest.mark.parametrize("wrapping", ["{}", *WRAPPINGS])
def test_a_wrapped_reference_is_what_it_holds(reward: str, wrapping: str) -> None:
    bare, right, wrong = BARE[reward]
    golds: list[Any] = [wrapping.format(bare), {"ground_truth": wrapping.format(bare), "style": "rule"}]
    if reward != "set_match":
        golds.append(
            [wrapping.format(wrong * 2), wrapping.format(bare)]
            if reward in ("math", "answer_accuracy")
            else [golds[0]]
        )
    for gold in golds:
        for answer in (right, f"<answer>{right}</answer>"):
            assert value(reward, gold, answer) == 1.0, (gold, answer)
        assert value(reward, gold, wrong) == 0.0, gold


@pytest.mark.parametrize("reward", BARE)
@pytest.mark.parametrize("wrapping", ["{}", *WRAPPINGS])
def test_a_right_answer_as_models_write_it_gets_full_marks(reward: str, wrapping: str) -> None:
    gold, written = wrapping.format(BARE[reward][0]), load_reward(reward).written
    answers = None if written is None else written(gold)
    assert answers is not None
    assert max(value(reward, gold, answer) for answer in answers) == 1.0


@pytest.mark.parametrize(
    ("reward", "gold", "answer"),
    [
        ("math", "\\boxed{x = 7}", "x = 7"),
        ("math", "\\boxed{3 \\text{ and } 4}", "3, 4"),
        ("math", "\\boxed{\\{1,2\\}}", "{1,2}"),
        ("math", "\\boxed{9\\text{ cm}}", "9 cm"),
        ("math", "$42$", "42"),
        ("answer_accuracy", "$42$", "42"),
        ("answer_accuracy", "\\text{red}", "red"),
        ("set_match", ["<answer>oak</answer>", "\\boxed{elm}"], "elm and oak"),
        ("counting", ["5", 6], "6"),
        ("counting", 5.0, "5"),
        ("clock", ["3:15", "15:15"], "quarter past three"),
    ],
)
def test_other_forms_of_references(reward: str, gold: Any, answer: str) -> None:
    assert value(reward, gold, answer) == 1.0


@pytest.mark.parametrize(
    "gold", ["Answer me", "St. Louis", "first\nsecond", "not prime", "x = 2", "a $5 note", "A. B."]
)
def test_what_announces_nothing_stays_as_it_is(gold: str) -> None:
    assert unwrapped(gold) == gold


@given(
    st.integers(-(10**6), 10**6),
    st.sampled_from(WRAPPINGS),
    st.sampled_from(["{}", "The answer is {}.", "\\boxed{{{}}}"]),
)
def test_any_number_in_any_wrapping(number: int, wrapping: str, answer: str) -> None:
    gold = wrapping.format(number)
    assert references([gold, number])[1] == str(number)
    assert (
        value("math", gold, answer.format(number))
        == value("answer_accuracy", gold, answer.format(number))
        == 1.0
    )
    assert (
        value("math", gold, answer.format(number + 1))
        == value("answer_accuracy", gold, answer.format(number + 1))
        == 0.0
    )


@pytest.mark.parametrize("gold", ["", "  ", [], [""], {"a": 1}, {"ground_truth": None}, ["a", None]])
def test_a_reference_that_is_none_is_an_error(gold: Any) -> None:
    with pytest.raises(ValueError, match="ground_truth"):
        references(gold)
