"""The accuracies of VQA, MMMU, ChartQA, VSI-Bench and SQuAD against their published evaluations."""

import collections
import re
import string
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.types import RewardInput
from rewards.builtin.short_answers import mean_relative_accuracy, mmmu_open, relaxed_accuracy, vqa_accuracy
from rewards.builtin.token_overlap import rouge_l, squad_exact_match, token_f1
from rewards.reading.short_answers import mmmu_candidates, squad_tokens, vqa_spelling
from rewards.sdk import Reward

ALL = [
    vqa_accuracy,
    mmmu_open,
    relaxed_accuracy,
    mean_relative_accuracy,
    token_f1,
    squad_exact_match,
    rouge_l,
]
#: A gold that every one of them reads.
GOLDS: dict[str, Any] = dict.fromkeys((r.name for r in ALL), "7") | {"vqa_accuracy": ["7"] * 10}
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
PIECES = """
red Red, the a two none 1,000 3.5 mr. dont isn't couldn'tve
T-shirt and/or (yes) U.S. yes! what's 1 2 . , ? -
"""
#: Without words that deny or leave open what stands beside them.
CALM = "red Red the two 1,000 3.5 T-shirt (blue) U.S. 1 2 marker oclock".split()
PHRASE = st.lists(st.sampled_from(PIECES.split()), max_size=6).map(" ".join)
PLAIN = st.lists(st.sampled_from(CALM), min_size=1, max_size=3).map(" ".join)
MARKED = [
    "{}",
    "<answer>{}</answer>",
    r"So it is \boxed{{{}}}",
    "Hm.\nAnswer: {}",
    "<think>hm, 99</think>{}",
]


def value(reward: Reward, gold: Any, answer: str, **params: Any) -> float:
    score = reward(RewardInput((), (), answer, ground_truth=gold), **params)
    assert score is not None
    return score.value


@pytest.mark.parametrize("reward", ALL, ids=lambda reward: reward.name)
@pytest.mark.parametrize("form", MARKED)
def test_a_right_answer_gets_full_marks_in_every_form(reward: Reward, form: str) -> None:
    if reward is not rouge_l:  # which compares the whole text
        assert value(reward, GOLDS[reward.name], form.format("7")) == 1
        assert value(reward, GOLDS[reward.name], form.format("8")) < 1


@pytest.mark.parametrize("reward", ALL, ids=lambda reward: reward.name)
@pytest.mark.parametrize("text", ["", " \n", "<think>7", "…", "\u200b"])
def test_no_answer_scores_nothing(reward: Reward, text: str) -> None:
    assert value(reward, GOLDS[reward.name], text) == 0


@pytest.mark.parametrize("reward", ALL, ids=lambda reward: reward.name)
@given(TEXT)
def test_any_text_is_judged(reward: Reward, text: str) -> None:
    found = value(reward, GOLDS[reward.name], text)
    assert 0 <= found <= 1
    assert value(reward, GOLDS[reward.name], f"\n {text} ") == found


@pytest.mark.parametrize("reward", ALL, ids=lambda reward: reward.name)
@pytest.mark.parametrize("unit", ["1,", "1" * 9, "is ", "a ", "\n", "'", "... ", "汉", "(7) ", "-1e9 ", "$%"])
def test_long_answers_are_quick(reward: Reward, unit: str) -> None:
    start = time.process_time()
    value(reward, GOLDS[reward.name], unit * (10**6 // len(unit)))
    assert time.process_time() - start < 2


@pytest.mark.parametrize("reward", ALL, ids=lambda reward: reward.name)
def test_without_a_gold_it_does_not_apply_and_a_wrong_one_is_named(reward: Reward) -> None:
    assert reward(RewardInput((), (), "7")) is None
    for gold in ([], {"answer": 7}, [""], None if reward is vqa_accuracy else [None], [[7]]):
        if gold is not None:
            with pytest.raises(ValueError, match="ground_truth"):
                value(reward, gold, "7")


@pytest.mark.parametrize("reward", ALL[1:], ids=lambda reward: reward.name)
def test_the_best_reference_counts(reward: Reward) -> None:
    assert value(reward, ["5000", "7"], "7") == value(reward, ["7", "5000"], "7") == 1


def official_vqa_spelling(text: str) -> str:
    """What the official processPunctuation and processDigitArticle do, with some contractions."""
    text = text.replace("\n", " ").replace("\t", " ").strip()
    marks = [
        ";",
        "/",
        "[",
        "]",
        '"',
        "{",
        "}",
        "(",
        ")",
        "=",
        "+",
        "\\",
        "_",
        "-",
        ">",
        "<",
        "@",
        "`",
        ",",
        "?",
        "!",
    ]
    out = text
    for mark in marks:
        if mark + " " in text or " " + mark in text or re.search(r"(\d)(\,)(\d)", text) is not None:
            out = out.replace(mark, "")
        else:
            out = out.replace(mark, " ")
    out = re.sub(r"(?!<=\d)(\.)(?!\d)", "", out)
    digits = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "ten": "10"}
    contractions = {
        "dont": "don't",
        "isnt": "isn't",
        "couldnt've": "couldn't've",
        "couldn'tve": "couldn't've",
    }
    words = [digits.get(word, word) for word in out.lower().split()]
    return " ".join(contractions.get(word, word) for word in words if word not in ("a", "an", "the"))


@given(PHRASE)
def test_vqa_spelling_is_the_official_one(text: str) -> None:
    assert vqa_spelling(text) == official_vqa_spelling(text)


@given(st.lists(PLAIN, min_size=10, max_size=10), PLAIN, st.randoms())
def test_vqa_accuracy_is_the_official_one(golds: list[str], answer: str, random: Any) -> None:
    answer = random.choice([*golds, answer])
    spelled = [official_vqa_spelling(gold) for gold in golds]
    own = official_vqa_spelling(answer)
    subsets = [spelled[:i] + spelled[i + 1 :] for i in range(10)]
    expected = np.mean([min(1.0, subset.count(own) / 3) for subset in subsets]) if own else 0
    assert value(vqa_accuracy, golds, f"<answer>{answer}</answer>") >= expected - 1e-9
    random.shuffle(golds)
    as_objects = [{"answer": gold, "answer_confidence": "yes"} for gold in golds]
    if answer.strip(" .,?-"):
        assert value(vqa_accuracy, as_objects, answer) == pytest.approx(expected)


@pytest.mark.parametrize(("equal", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_vqa_accuracy_by_the_number_of_people(equal: int, expected: float) -> None:
    golds = ["red"] * equal + [f"other {i}" for i in range(10 - equal)]
    assert value(vqa_accuracy, golds, "Red.") == pytest.approx(expected)


@pytest.mark.parametrize("gold", ["red", ["red"], ["red"] * 3, {"red": 10}])
def test_vqa_accuracy_wants_the_answers_of_people(gold: Any) -> None:
    with pytest.raises(ValueError, match="at least 4 people's answers"):
        value(vqa_accuracy, gold, "red")


@pytest.mark.parametrize(
    ("response", "candidates"),
    [
        ("The answer is 12.345", {"12.345": False, 12.35: True}),
        ("So x = 3 and y is 1,250", {1250.0: True, 3.0: False}),
        ("area = 3 * 4 = 12", {12.0: True, 3.0: False, "12": False}),
        ("It is b", {" b": True, "b ": True, "b": False}),
        ("Therefore the final result could be a red car.", {"a red car": True}),
        ("1.5e3", {1500.0: True}),
    ],
)
def test_mmmu_candidates_are_the_published_ones(response: str, candidates: dict[Any, bool]) -> None:
    found = mmmu_candidates(response)
    assert {candidate: candidate in found for candidate in candidates} == candidates


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("12.35", "The answer is 12.347 cm", True),
        (["0.5", "1/2"], "It is 1/2", True),
        ("1250", "Answer: 1,250", True),
        ("-3", "x = -3", True),
        ("red car", "the answer is a red car.", True),
        ("Transformation", r"\boxed{transformation}", True),
        ("12.35", "The answer is 12.5", False),
        ("-3", "x = 3", False),
        ("a", "abc", False),
        ("7", "It is 1, 2, 3, 4, 5, 6, 7 or 8", False),
        ("red car", "red car " + "or a blue one " * 20, False),
        ("7", "It is not 7.", False),
        ("red car", "It isn't a red car", False),
        ("not applicable", "It is not applicable", True),
        ("7", "nan", False),
        ("7", "inf", False),
    ],
)
def test_mmmu_open_answers(gold: Any, answer: str, right: bool) -> None:
    assert value(mmmu_open, gold, answer) == right


def pix2struct(target: str, prediction: str) -> bool:
    """relaxed_correctness as pix2struct has it."""

    def to_float(text: str) -> float | None:
        try:
            return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
        except ValueError:
            return None

    predicted, wanted = to_float(prediction), to_float(target)
    if predicted is not None and wanted:
        return abs(predicted - wanted) / abs(wanted) <= 0.05
    return prediction.lower() == target.lower()


NUMBERS = st.one_of(st.integers(-9999, 9999), st.decimals(-99, 99, places=2)).map(str)


@given(NUMBERS, NUMBERS, st.floats(0.9, 1.1), st.sampled_from(["", "%"]), st.sampled_from(["", "%"]))
def test_relaxed_accuracy_is_that_of_pix2struct(gold: str, other: str, factor: float, a: str, b: str) -> None:
    for answer in (other, f"{float(gold) * factor:.3f}"):
        wanted, distance = float(gold), abs(float(answer) - float(gold))
        if wanted and abs(distance / abs(wanted) - 0.05) > 1e-9:  # a bound is a matter of rounding
            assert value(relaxed_accuracy, gold + a, answer + b) == pix2struct(gold + a, answer + b)


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("100", "105", True),
        ("100", "95", True),
        ("100", "105.1", False),
        ("-100", "-104", True),
        ("-100", "104", False),
        ("0", "0.0", True),
        ("0", "0.001", False),
        ("12%", "12.3%", True),
        ("12%", "0.12", True),
        ("12%", "12", False),
        ("1,200", "$1200", True),
        ("1200", "It is about 1,190 dollars.", True),
        ("12%", "The share is 12 percent.", True),
        ("12%", r"\boxed{12\%}", True),
        ("12", r"\boxed{12\%}", False),
        ("Yes", "yes.", True),
        ("Brazil", "Brasil", False),
        ([14], "14", True),
        ("100", "between 50 and 100", False),
        ("100", "more than 100", False),
        ("100", "nan", False),
        ("100", "1e999", False),
        ("100", "It might be 100.\nAnswer: unknown", False),
    ],
)
def test_relaxed_accuracy(gold: Any, answer: str, right: bool) -> None:
    assert value(relaxed_accuracy, gold, answer) == right


def test_the_tolerance_is_a_parameter() -> None:
    assert value(relaxed_accuracy, "100", "109", tolerance=0.1) == 1
    assert value(relaxed_accuracy, "100", "101", tolerance=0.0) == 0
    with pytest.raises(ValueError, match="tolerance"):
        value(relaxed_accuracy, "100", "101", tolerance=1.0)


@given(st.floats(0.1, 1000).map(lambda x: round(x, 2)), st.floats(0, 3))
def test_mean_relative_accuracy_is_that_of_vsi_bench(gold: float, factor: float) -> None:
    answer = round(gold * factor, 3)
    levels = np.linspace(0.5, 0.95, int((0.95 - 0.5) / 0.05 + 2))
    assert len(levels) == 10
    apart = np.abs(answer - gold) / gold - (1 - levels)
    if np.abs(apart).min() > 1e-9:
        assert value(mean_relative_accuracy, gold, str(answer)) == pytest.approx((apart <= 0).mean())
        nearer = str(round((answer + gold) / 2, 6))
        assert value(mean_relative_accuracy, gold, nearer) >= value(mean_relative_accuracy, gold, str(answer))


@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [
        (4, "4", 1),
        (4, "about 4.1 m", 1),
        (4, "5", 0.6),
        (4, "three", 0.6),
        (4, "8", 0),
        (4, "2", 0.1),
        (0, "0", 1),
        (0, "1", 0),
        (4, "4 or 5", 0),
        (4, "many", 0),
    ],
)
def test_mean_relative_accuracy(gold: float, answer: str, expected: float) -> None:
    assert value(mean_relative_accuracy, gold, answer) == pytest.approx(expected)


def test_mean_relative_accuracy_wants_numbers() -> None:
    with pytest.raises(ValueError, match="no number"):
        value(mean_relative_accuracy, "far", "4")


def official_squad_tokens(text: str) -> list[str]:
    """normalize_answer of SQuAD's evaluate-v1.1.py, split."""
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split()).split()


def official_f1(gold: str, answer: str) -> float:
    golds, answers = official_squad_tokens(gold), official_squad_tokens(answer)
    common = sum((collections.Counter(golds) & collections.Counter(answers)).values())
    if not common:
        return 0.0
    precision, recall = common / len(answers), common / len(golds)
    return 2 * precision * recall / (precision + recall)


@given(PHRASE)
def test_squad_tokens_are_the_official_ones(text: str) -> None:
    assert squad_tokens(text) == official_squad_tokens(text)


@given(PLAIN.filter(lambda text: bool(squad_tokens(text))), PLAIN)
def test_squad_is_the_official_one(gold: str, answer: str) -> None:
    tagged = f"<answer>{answer}</answer>"
    same = official_squad_tokens(gold) == official_squad_tokens(answer)
    assert value(token_f1, gold, tagged) == pytest.approx(official_f1(gold, answer))
    assert value(squad_exact_match, gold, tagged) == same


@pytest.mark.parametrize(
    ("gold", "answer", "f1", "exact"),
    [
        ("The Eiffel Tower", "eiffel tower.", 1, 1),
        ("Eiffel Tower", "the tower of Eiffel", 0.8, 0),
        ("“U.S.A.”", "USA", 1, 1),
        ("北京大学", "北京 大学。", 1, 1),
        ("北京大学", "北京", 2 / 3, 0),
        ("café", "café", 1, 1),
    ],
)
def test_token_f1_and_exact_match(gold: str, answer: str, f1: float, exact: float) -> None:
    assert value(token_f1, gold, answer) == pytest.approx(f1)
    assert value(squad_exact_match, gold, answer) == exact


@given(
    st.lists(st.sampled_from("abcd"), min_size=1, max_size=9),
    st.lists(st.sampled_from("abcd"), min_size=1, max_size=9),
)
def test_rouge_l_is_the_longest_common_subsequence(gold: list[str], answer: list[str]) -> None:
    lengths = np.zeros((len(gold) + 1, len(answer) + 1), dtype=int)
    for i, a in enumerate(gold, 1):
        for j, b in enumerate(answer, 1):
            lengths[i, j] = lengths[i - 1, j - 1] + 1 if a == b else max(lengths[i - 1, j], lengths[i, j - 1])
    longest = lengths[-1, -1]
    precision, recall = longest / len(answer), longest / len(gold)
    expected = 2 * precision * recall / (precision + recall) if longest else 0
    assert value(rouge_l, " ".join(gold), " ".join(answer).upper()) == pytest.approx(expected)


@pytest.mark.parametrize("gold", ["A", "the", "…", ["red", "a"]])
def test_a_gold_of_articles_and_punctuation_is_a_fault(gold: Any) -> None:
    for reward in (token_f1, squad_exact_match):
        with pytest.raises(ValueError, match="exact_match"):
            value(reward, gold, "a")
