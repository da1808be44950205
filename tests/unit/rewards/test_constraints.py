"""Verifiable constraints: what dataset lists may say, and that no text breaks or slows a check."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.types import RewardInput, text_message
from rewards.builtin.instruction_following import instruction_following
from rewards.reading.constraints import CHECKS, Answer, passes, read_constraints
from rewards.reading.units import paragraphs, sentences, words
from rewards.sdk import Reward

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
#: One right constraint of every type.
ONE_OF_EACH: list[dict[str, Any]] = [
    {"type": "contains", "value": ["cat"], "count": 2},
    {"type": "contains_any", "value": ["cat", "dog"]},
    {"type": "excludes", "value": "fox"},
    {"type": "frequency", "value": "the", "max": 3},
    {"type": "letter_frequency", "value": "e", "min": 1},
    {"type": "all_lowercase"},
    {"type": "all_uppercase"},
    {"type": "starts_with", "value": "Sure"},
    {"type": "ends_with", "value": "bye."},
    {"type": "paragraph_starts_with", "value": "Then", "paragraph": 2},
    {"type": "sections", "value": ["A", "B"]},
    {"type": "numbered_sections", "value": 2, "mark": "Part"},
    {"type": "divided_paragraphs", "value": 2},
    {"type": "title"},
    {"type": "postscript"},
    {"type": "no_commas"},
    {"type": "quoted"},
    {"type": "json"},
    {"type": "json_schema", "value": {"type": "object"}},
    {"type": "language", "value": "en"},
    {"type": "choice", "value": ["yes", "no"]},
    {"type": "repeat_prompt", "value": "Say it."},
    {"type": "responses", "value": 2},
    *({"type": name, "value": 2} for name in CHECKS if name.startswith(("min_", "max_", "exact_"))),
]


def score(constraints: Any, answer: str, prompt: str = "", **params: Any) -> float:
    messages = (text_message("user", prompt),) if prompt else ()
    x = RewardInput(messages, (), answer, columns={"constraints": constraints})
    result = instruction_following(x, **params)
    assert result is not None
    return result.value


def test_every_type_has_an_example_here() -> None:
    assert {c["type"] for c in ONE_OF_EACH} == set(CHECKS)


@given(TEXT)
def test_any_text_is_judged(text: str) -> None:
    value = score(ONE_OF_EACH, text)
    assert 0 <= value <= 1
    assert score(ONE_OF_EACH, f" \n{text}\t\n") == value


@pytest.mark.parametrize("text", ["", " \n", "...", "\u200b\u202e", "<think>never ends"])
def test_an_empty_answer_keeps_nothing(text: str) -> None:
    assert score([{"type": "no_commas"}, {"type": "max_words", "value": 9}], text) == 0


def test_share_all_and_parts() -> None:
    listed = [{"type": "max_words", "value": 3}, {"type": "contains", "value": "cat"}, {"type": "no_commas"}]
    assert score(listed, "a black dog") == pytest.approx(2 / 3)
    assert score(listed, "a black dog", mode="all") == 0
    assert score(listed, "a black cat", mode="all") == 1
    result = instruction_following(RewardInput((), (), "a black dog", ground_truth=listed))
    assert result is not None
    assert result.parts == {"1 max_words": 1, "2 contains": 0, "3 no_commas": 1}
    assert result.note == "broken: 2 contains"


def test_without_constraints_it_does_not_apply() -> None:
    assert instruction_following(RewardInput((), (), "text")) is None


def test_arrow_rows_and_json_text_are_read() -> None:
    rows = [{"type": "no_commas", "value": None, "count": None}]
    assert score(rows, "red and blue") == 1
    assert score('[{"type": "max_words", "value": 2}]', "red and blue") == 0


@pytest.mark.parametrize(
    ("constraints", "message"),
    [
        ([], "1 to 100"),
        ({"type": "json"}, "list"),
        ("[", "not JSON"),
        (["json"], "no object"),
        ([{"type": "max_word", "value": 3}], "did you mean 'max_words'"),
        ([{"type": "max_words"}], "needs a value"),
        ([{"type": "max_words", "value": "3"}], "whole number from 1"),
        ([{"type": "max_words", "value": True}], "whole number from 1"),
        ([{"type": "min_words", "value": 0}], "whole number from 1"),
        ([{"type": "max_words", "value": 3, "count": 2}], "takes no 'count'"),
        ([{"type": "contains", "value": []}], "list of texts"),
        ([{"type": "contains", "value": [" "]}], "list of texts"),
        ([{"type": "frequency", "value": "a"}], "needs min or max"),
        ([{"type": "language", "value": "german"}], "one of am, ar,"),
        ([{"type": "choice", "value": ["Yes", "yes."]}], "different"),
        ([{"type": "no_commas", "value": True}], "left out"),
        ([{"type": "json_schema", "value": {"type": "strin"}}], "wrong JSON schema"),
        ([{"type": "repeat_prompt"}], "neither a value nor a prompt"),
    ],
)
def test_faults_of_the_dataset_are_named(constraints: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(constraints, "Some text.")


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="mode"):
        score([{"type": "json"}], "{}", mode="strict")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("It's 5 o'clock.", 3),
        ("well-known – dash", 2),
        ("图中有3只猫", 6),
        ("हिन्दी में लिखो", 3),
        ("la niña comió", 3),
        ("안녕하세요 여러분", 2),
        ("a_b c/d", 4),
    ],
)
def test_words(text: str, count: int) -> None:
    assert len(words(text)) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("It is 3.5 cm, e.g. as here. Good.", 2),
        ("The answer is B. It is clear.", 2),
        ("John F. Kennedy spoke. He left.", 2),
        ("Wait... what?! Yes", 3),
        ("- one\n- two\n- three", 3),
        ("他来了。真的吗？是的！", 3),
        ("no mark", 1),
        ("...", 0),
    ],
)
def test_sentences(text: str, count: int) -> None:
    assert len(sentences(text)) == count


def test_paragraphs() -> None:
    assert paragraphs("one\nstill one\n\n \n---\ntwo") == ["one\nstill one", "two"]


@pytest.mark.parametrize(
    "text",
    ["a" * 10**6, "." * 10**6, "\n" * 10**6, ".x" * 500_000, "\n- " * 330_000, "汉" * 10**6, "* a" * 330_000],
    ids=["word", "dots", "lines", "ends", "items", "han", "stars"],
)
def test_a_megabyte_takes_linear_time(text: str) -> None:
    answer = Answer(text)
    start = time.process_time()
    for constraint in read_constraints(ONE_OF_EACH):
        passes(constraint, answer)
    assert time.process_time() - start < 8  # quadratic time would be hours


def test_it_is_a_reward_from_0_to_1() -> None:
    assert isinstance(instruction_following, Reward)
    assert (instruction_following.low, instruction_following.high) == (0, 1)
