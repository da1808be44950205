"""Multiple choice: letters, several letters, and the options' texts."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.types import RewardInput
from rewards.builtin.multiple_choice import multiple_choice

CITIES = {"A": "Paris", "B": "London", "C": "Berlin"}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def score(gold: Any, answer: str, choices: Any = None) -> float:
    columns = {} if choices is None else {"choices": choices}
    result = multiple_choice(RewardInput((), (), answer, ground_truth=gold, columns=columns))
    assert result is not None
    return result.value


@pytest.mark.parametrize(
    "answer", ["B", "(b)", "B. red", "\\boxed{\\text{(B)}}", "So the answer is B.", "故选：B。"]
)
def test_a_letter(answer: str) -> None:
    assert score("B", answer) == 1.0
    assert score("C", answer) == 0.0


@pytest.mark.parametrize(
    "answer", ["ABCD", "A, B", "(A) (B) (C) (D)", "A or B", "A. x B. y", "Because", "B, B", ""]
)
def test_hedges_and_nothing(answer: str) -> None:
    assert score("B", answer) == 0.0


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("A, C", 1),
        ("CA", 1),
        ("A and C", 1),
        ("A、C", 1),
        ("A", 0),
        ("A or C", 0),
        ("ABC", 0),
        ("A, B, C, D", 0),
    ],
)
def test_several_letters(answer: str, value: float) -> None:
    assert score(["A", "C"], answer) == value


@pytest.mark.parametrize("choices", [CITIES, list(CITIES.values()), ["A. Paris", "B. London", "C. Berlin"]])
def test_the_text_of_an_option(choices: Any) -> None:
    assert (
        score("A", "Paris", choices)
        == score("A", "A. Paris", choices)
        == score("A", "It is Paris.", choices)
        == 1.0
    )
    assert (
        score("A", "London", choices)
        == score("A", "A. London", choices)
        == score("A", "Paris or London", choices)
        == 0.0
    )
    assert score(["A", "B"], "Paris, London", choices) == 1.0


def test_an_option_that_is_a_number_may_be_written_in_another_way() -> None:
    assert score("B", "0.5", ["1/3", "\\frac{1}{2}", "2"]) == 1.0
    assert score("B", "5", ["5 m", "5 km"]) == 0.0


@given(st.sampled_from("ABCDEFGH"), TEXT)
def test_gold_earns_everything_and_nothing_earns_nothing(gold: str, other: str) -> None:
    assert score(gold, gold) == score(gold, f" \n{gold}\t") == 1.0
    assert score(gold, "") == 0.0
    assert score(gold, other) == score(gold, f"\n {other} ") in (0.0, 1.0)
    assert score("A", other, CITIES) in (0.0, 1.0)


@pytest.mark.parametrize("gold", ["", "AC", 1, [], ["A", 2], "yes", {"A": 1}])
def test_a_ground_truth_that_is_no_letter_is_an_error(gold: Any) -> None:
    with pytest.raises(ValueError, match="ground_truth"):
        score(gold, "A")


@pytest.mark.parametrize(
    "choices", ["Paris", [], ["x", "x"], {"A": "", "B": "y"}, {"AB": "x"}, [["x"]], ["x"] * 27]
)
def test_options_that_are_no_options_are_an_error(choices: Any) -> None:
    with pytest.raises(ValueError, match="choices"):
        score("A", "A", choices)


def test_a_ground_truth_that_is_no_option_is_an_error_and_none_does_not_apply() -> None:
    with pytest.raises(ValueError, match="choices"):
        score("D", "A", CITIES)
    assert multiple_choice(RewardInput((), (), "A")) is None


@pytest.mark.parametrize(
    "answer", ["A , B , " * 100 + "!", "( A ) " * 150 + "!", "A" * 900, "A. " * 300, "\\boxed{" * 5000]
)
def test_hostile_texts_cost_nothing(answer: str) -> None:
    taken = []
    for _ in range(3):  # a collection of a large process's garbage may fall into one of them
        begun = time.thread_time()
        assert score("B", answer, CITIES) == 0.0
        taken.append(time.thread_time() - begun)
    assert min(taken) < 1


TEXTS = [
    *(
        "It's red",
        "Ohm's law",
        "U.K. Parliament",
        "E. coli",
        "C. S. Lewis",
        "[Na+]",
        "A/(A+B)",
        'print("x")',
        "3.5 m²",
    ),
    *(
        "a*b*c",
        "W200*40",
        "∠A=81°30'",
        "$\\frac{1}{3}$",
        "x^2 + 2",
        "1,500",
        "7%",
        "$9",
        "(1, 3)",
        "[0, 2]",
        "{1, 4}",
    ),
    *(
        "a < c",
        "C++",
        "f(x) = 2x",
        "No. 6",
        "11:30 a.m.",
        "−6",
        "3 or 5",
        "not enough data",
        "None of the above",
    ),
    *(
        "Both A and B",
        "I and III",
        "red, green and white",
        "it is not blue",
        "H₂SO₄",
        "β-sheet",
        "“quoted”",
        "a_c",
    ),
    *(
        "`code`",
        "x → z",
        "3/4",
        "2 kg",
        "St. Moritz",
        "vitamin A",
        "Group B.",
        "at least 6",
        "> 7",
        "A. thaliana",
    ),
    *(
        "\\(y\\)",
        "200 °C",
        "NaCl (aq)",
        "[Ar] 3d5",
        "图2",
        "上海",
        "对",
        "True",
        "No",
        "left",
        "I",
        "c",
        "K",
        "13",
    ),
]
WITH_LETTER = """\
{L}|({L})|{L}.|{L}. {x}|({L}) {x}|{L}) {x}|{L}: {x}|**{L}. {x}**|The answer is {L}. {x}|Answer: {L}. {x}
\\boxed{{{L}}}|<answer>{L}. {x}</answer>|The correct option is {L}.|Option {L} is correct.|I choose {L}.
{L}. {x}¶I hope this helps!|Answer: {L}¶Note that this answer is based on the labels.
The answer is {L} (see figure)|The answer is {L}, not another
The answer is {L}. This follows from the chart.|The answer is {L}, because it fits the picture best.
故选：{L}。|答案：{L}. {x}|So the correct answer is **{L}**.|The answer is **{L}. {x}**
$\\boxed{{\\text{{{L}}}}}$"""


@given(st.lists(st.sampled_from(TEXTS), min_size=2, max_size=6, unique_by=str.casefold), st.data())
def test_a_letter_with_or_without_its_own_text(choices: list[str], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(choices) - 1))
    wrong = data.draw(st.integers(0, len(choices) - 1).filter(lambda other: other != index))
    letter, other = chr(65 + index), chr(65 + wrong)
    for form in WITH_LETTER.replace("\n", "|").replace("¶", "\n\n").split("|"):
        answer = form.format(L=letter, x=choices[index])
        assert score(letter, answer, choices) == 1.0, answer
        assert score(other, answer, choices) == 0.0, answer
        if "{x}" in form:  # the letter of one option with the text of another
            assert score(letter, form.format(L=other, x=choices[index]), choices) == 0.0
    for form in (
        "{L} or {o}",
        "The answer is not {L}",
        "Option {L} is wrong.",
        "{L} is incorrect.",
        "排除{L}",
        "{L}不对",
    ):
        assert score(letter, form.format(L=letter, o=other), choices) == 0.0, form


@pytest.mark.parametrize(("choices", "gold"), [("BADC", "A"), ("CDEA", "C"), ("bacd", "B"), ("EDCB", "D")])
def test_a_letter_is_a_letter_where_options_are_letters(choices: str, gold: str) -> None:
    for answer in (
        gold,
        f"({gold})",
        f"Answer: {gold}",
        f"\\boxed{{{gold}}}",
        f"{gold}. {choices['ABCD'.index(gold)]}",
    ):
        assert score(gold, answer, list(choices)) == 1.0, answer


@pytest.mark.parametrize(
    "choices",
    [
        ["BB", "Bb", "bb"],
        ["mV", "MV"],
        ["Q", "q"],
        ["i ii", "ii i"],
        ["\\", "/"],
        ["a*+", "a++", "a+"],
        ["5 m", "5m2"],
        ["10²", "102"],
    ],
)
def test_case_spaces_and_signs_tell_options_apart(choices: list[str]) -> None:
    for index, text in enumerate(choices):
        letter, other = "ABC"[index], "ABC"[(index + 1) % len(choices)]
        assert score(letter, letter, choices) == score(letter, f"{letter}. {text}", choices) == 1.0
        assert score(letter, f"{other}. {text}", choices) == 0.0
        assert len(text) == 1 or score(letter, text, choices) == 1.0


SAID = """\
E. It can't be A or B|E, not A|B is wrong. The answer is E.|It can't be A, B or C, so E.
E is the right choice|I would go with E|I'd pick E.|The right letter is E|Choice E|It's E.
E seems correct|E。不是A|E，因为它最大|[E]|【E】|E is correct because it's larger.
La respuesta correcta es la E.|Die richtige Antwort ist E.|La bonne réponse est la E.
Правильный ответ: E|正解はEです。|정답은 E입니다.|الإجابة الصحيحة هي E|सही उत्तर E है
A resposta correta é a E.|Ans: E|Correct option: E|The answer is $E$|Therefore, E.|So, E"""
NOT_SAID = """\
A B C D E|ABCDE|all of them|Not E|E is wrong|Option E is not correct|E can't be right|E or A
either A or E|E? No, A|答案不是E|E不对|I am sure it's not E|anything but E|E, A|E and maybe A|Egg
The answer is A. E is wrong.|Maybe A, maybe E|No idea which answer is E"""


@pytest.mark.parametrize("answer", SAID.replace("\n", "|").split("|"))
def test_a_letter_within_a_sentence(answer: str) -> None:
    assert score("E", answer) == 1.0
    assert score("A", answer) == 0.0


@pytest.mark.parametrize("answer", NOT_SAID.replace("\n", "|").split("|"))
def test_a_letter_that_is_not_chosen(answer: str) -> None:
    assert score("E", answer) == 0.0


REFERENCES = (
    "(B)|B.|Answer: B|The answer is B.|\\boxed{B}|<answer>B</answer>|$B$|b|B. pear|#### B|答案是B|pear"
)


@pytest.mark.parametrize("gold", [*REFERENCES.split("|"), ["B"], ("(B)",)])
def test_a_reference_is_read_as_an_answer_is(gold: Any) -> None:
    choices = ["apple", "pear", "plum"]
    assert score(gold, "B", choices) == score(gold, "It is a pear", choices) == 1.0
    assert score(gold, "A", choices) == 0.0


def test_no_formula_is_solved() -> None:
    hard = [f"x^{{{n}}} + \\sin(x^{{{n}}}) = {n}x^3 + \\sqrt{{x+{n}}}" for n in range(5, 15)]
    begun = time.thread_time()
    assert score("B", "\\boxed{x^{7} = 12 + \\sin(x) - 7x^9 + \\sqrt{x}}", hard) == 0.0
    assert score("B", f"B. {hard[1]}", hard) == 1.0
    assert time.thread_time() - begun < 1
