"""What the words around an answer do to it, the same in every reward that reads an answer."""

import time
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from posttrain.types import RewardInput
from rewards.reading.answers import final_answer, readings
from rewards.reading.remarks import without_remarks
from rewards.reading.wording import taken_back
from rewards.sdk import load_reward

#: A gold for each reward, how models write it, and another answer.
GOLDS: dict[str, tuple[Any, tuple[str, ...], str]] = {
    "math": ("48", ("48", "$48$"), "36"),
    "multiple_choice": ("C", ("C", "(C)"), "D"),
    "answer_accuracy": ("Oslo", ("Oslo", "**Oslo**"), "Bergen"),
    "exact_match": ("QX-3", ("QX-3",), "QX-4"),
    "anls": ("Vermeer", ("Vermeer",), "Rubens"),
    "counting": (7, ("7", "seven"), "9"),
    "clock": ("3:40", ("3:40",), "5:15"),
    "set_match": (["oak", "elm"], ("oak, elm", "elm and oak"), "pine"),
}
FORMS = [(name, form) for name, (_, forms, _) in GOLDS.items() for form in forms]
#: The rewards whose answers are numbers, which words can bound.
NUMBERS = [("math", "48"), ("math", "$48$"), ("math", "**48**"), ("counting", "7")]
SINGLE = [(name, GOLDS[name][1][0]) for name in GOLDS if name not in ("anls", "set_match")]

DENIALS = r"""The answer is not {}|The answer isn't {}.|The answer can't be {}.|The answer can’t be {}
The answer cannot be {}|The answer should not be {}|The answer must not be {}
The answer could never be {}|The answer is definitely not {}|The answer was not {}|It is not {}
It isn't {}.|I don't think the answer is {}|I do not believe the answer is {}
No idea whether the answer is {}|It is not true that the answer is {}|The answer is anything but {}
The answer is neither {} nor another one|The answer is no longer {}|{} is wrong|{} is not the answer
{} is not correct.|{} is incorrect|{} isn't the answer|{} cannot be the answer|{} can't be right
{} would be wrong|Answer: not {}|Final answer: not {}|**Answer:** not {}|#### not {}
<answer>not {}</answer>|\boxed{{\text{{not }} {}}}|The answer is not \boxed{{{}}}|\boxed{{{}}} is wrong
\boxed{{{}}} is not the answer|If the answer is {}|The wrong answer is {}|I doubt the answer is {}
The answer is unlikely to be {}|The answer is not equal to {}|The answer is far from {}|Not {}
Definitely not {}|That's not {}|The answer is {}. No wait, that is not right.
The answer is {}. Actually, this is wrong.|The answer is {}, or maybe something else|{} is false
答案不是{}|答案不是 {}。|答案不可能是{}|答案不会是{}|结果不是 {}|{}是错的|{}不对|{}不是答案|不是{}
答案：不是{}|並非{}|答えは{}ではありません|答えは{}ではない。|{}ではない|정답은 {}이 아닙니다
정답은 {}가 아니다.|La réponse n'est pas {}|Ce n'est pas {}|La respuesta no es {}|No es {}
Die Antwort ist nicht {}|Es ist nicht {}|Ответ: не {}|Это не {}|الإجابة ليست {}|ليس {}|उत्तर {} नहीं है
यह {} नहीं है|A resposta não é {}|La risposta non è {}|Surely it's not {}|It won't be {}
There is no way the answer is {}|Nobody would answer {}|I rule out {}|We can exclude {}
{} must be excluded|{} is ruled out|{} does not work|Incorrect: {}|Wrong answer: {}|Contrary to {}
我不认为答案是{}|绝对不是{}|答案并非{}|{}是错误的|Nein, nicht {}|jamás {}|{} неверно|{}は正しくない
{} 아님|{}? No!|Let's say {}? No.|Is it {}?|weder {} noch etwas|Ce n'est certainement pas {}"""
BOUNDS = r"""at least {}|at most {}|more than {}|less than {}|fewer than {}|greater than {}
The answer is at least {}|The answer is more than {}.|Answer: at most {}|no more than {}
not less than {}|up to {}|over {}|> {}|≥ {}|≤{}|< {}|nearly {}|almost {}|{} or more|{} or fewer
{} or less|{}+|{} at least|{} at most|exceeds {}|below {}|under {}|The value is less than {}.
The answer is greater than or equal to {}|as many as {}|larger than {}|至少{}|最多{}|不到{}|超过{}
大于{}|不少于{}|{}以上|{}以下|答案至少是{}|少なくとも{}|{}以上です|{} 이상|최소 {}|{} 미만|au moins {}
plus de {}|moins de {}|mindestens {}|höchstens {}|mehr als {}|weniger als {}|al menos {}|más de {}
menos de {}|как минимум {}|больше {}|не менее {}|менее {}|على الأقل {}|أكثر من {}|أقل من {}|कम से कम {}
{} से अधिक|{} से कम|The answer is above {}|The answer is just under {}|{} or above|minimum {}|max. {}
⩾ {}|少于{}|多于{}|{}以内|sous {}|unter {}|über {}|{}보다 크다|{} より大きい
The answer is strictly greater than {}"""
HEDGES = r"""{} or {o}|{o} or {}|either {} or {o}|{}, or {o}|{} / {o}|The answer is {} or {o}.
Answer: {} or {o}|答案是{}或{o}|{}或者{o}|<answer>{} or {o}</answer>
<answer>{o}</answer> or <answer>{}</answer>|<answer>{o}</answer><answer>{}</answer>
\boxed{{{o} \text{{ or }} {}}}|Answer: {}. Or {o}.|The answer is {}, maybe {o}|{} ou {o}|{} oder {o}
{} или {o}|{} vs {o}|{} and/or {o}|between {} and {o}|from {o} to {}|{o}–{}"""
BOX_JOINTS = [
    " or ", r" \text{ or } ", r" \text{or} ", r"\quad", r" \qquad ", r" \lor ", r" \vee ", r" \mid ",
    " / ", "~", r" \; ",
    r" \quad \text{or} \quad ", r" \mathrm{or} ", r" \textbf{ or perhaps } ", ", alternatively ",
    r" \\ ", " & ", "\n", " | ", "$ or $",
    r" \hspace{1cm} ", r" \cup ", " + ", "、", " 或 ", " または ", " oder ", " и ", r",\ ", "",
]  # fmt: skip
ANNOUNCED = r"""{}|The answer is {}|The answer is {}.|Answer: {}|**Answer:** {}|**Answer: {}**
Final Answer: {}|### Answer\n{}|#### {}|<answer>{}</answer>|\boxed{{{}}}|So the answer is {}.
Therefore, the final answer is {}.|The correct answer is: {}|答案是{}|答案：{}|答案是{}。|【答案】{}
答えは{}です。|正解は{}です|답: {}|정답은 {}입니다.|La réponse est {}.|Réponse : {}|La respuesta es {}.
Respuesta: {}|Die Antwort ist {}.|Antwort: {}|Ответ: {}|الإجابة هي {}|الجواب: {}|उत्तर: {}|उत्तर {} है।
A resposta é {}.|La risposta è {}.|Let me see.\n\nThe answer is {}|The final answer is **{}**.
<answer>The answer is {}.</answer>|<answer>\boxed{{{}}}</answer>|<answer> {} </answer>
\boxed{{\text{{{}}}}}|Not sure at first, but the answer is {}.
It cannot be the other one, so the answer is {}.|The answer is not something else, it is {}.
My final answer: {}|Answer:\n\n{}|The answer must be {}.|<think>no</think>\n\n{}|Here's the answer: {}
最终答案：{}|因此，正确答案是{}。|Donc la réponse est {}.|Таким образом, ответ: {}|इसलिए सही उत्तर {} है।
{} ✅|✅ {}"""
REMARKS = r"""\n\nI hope this helps!|\n\nI hope this answer is helpful!
\nLet me know if you have any questions.|. I hope it is correct.
\n\nNote: this answer is based on the visible area only.|\n\nNote that the picture is dark.
\n\nThe problem is solved.|\nTherefore the question is solved.| 😊|\n\n😊|\n\n---|\n\nThank you!
\n希望对你有帮助！|。希望对你有帮助|\n\nIs there anything else?
\n\nThis answer is correct because I checked it.|\nBest regards|\n\nConfidence: 95%
\n\nFeel free to ask.|\n\n(This is my final answer.)|\n\nExplanation: see the picture.
\nJ'espère que cela vous aide.|\nIch hoffe, das hilft.|\nEspero que esto ayude.|\nНадеюсь, это поможет!
\nご参考になれば幸いです。|\n도움이 되었길 바랍니다.|\nآمل أن يكون هذا مفيدًا|\nआशा है कि यह मदद करेगा।
\n\nDone.|\n\n— Your assistant|\n\nAnd that is our final answer.|\n\nIf you'd like, I can explain more.
\n\n> Cheers!"""


def table(text: str) -> list[str]:
    """The cells of a table; a written \\n is a line's end."""
    return [cell.replace("\\n", "\n") for line in text.splitlines() for cell in line.split("|")]


def value(reward: str, answer: str, gold: Any = None, **columns: Any) -> float:
    x = RewardInput((), (), answer, ground_truth=GOLDS[reward][0] if gold is None else gold, columns=columns)
    score = load_reward(reward)(x)
    assert score is not None
    return score.value


def paid(form: str, rewards: list[tuple[str, str]], other: bool = False) -> list[tuple[str, str, float]]:
    """The answers of this form that get any marks."""
    found = []
    for reward, right in rewards:
        answer = form.format(right, o=GOLDS[reward][2]) if other else form.format(right)
        got = value(reward, answer)
        if got > (0.7 if reward == "set_match" else 0):  # «oak, elm, or another» names two of three
            found.append((reward, answer, got))
    return found


@pytest.mark.parametrize("form", table(DENIALS))
def test_what_is_denied_is_no_answer(form: str) -> None:
    assert not paid(form, FORMS)


@pytest.mark.parametrize("form", table(BOUNDS))
def test_a_bound_is_no_answer(form: str) -> None:
    assert not paid(form, [*NUMBERS, *(pair for pair in SINGLE if pair[0] not in ("math", "clock"))])


@pytest.mark.parametrize("form", table(HEDGES))
def test_two_answers_are_none(form: str) -> None:
    assert not paid(form, SINGLE, other=True)


@pytest.mark.parametrize("joint", BOX_JOINTS)
def test_several_boxes_are_one_list(joint: str) -> None:
    assert not paid(
        r"\boxed{{{o}}}" + joint.replace("{", "{{").replace("}", "}}") + r"\boxed{{{}}}", SINGLE, other=True
    )
    assert value("math", rf"\boxed{{36}}{joint}\boxed{{48}}", gold="36, 48") == 1.0


@pytest.mark.parametrize("announced", table(ANNOUNCED))
@pytest.mark.parametrize("reward", [name for name in GOLDS if name not in ("anls", "exact_match")])
def test_a_remark_takes_nothing_from_an_answer(reward: str, announced: str) -> None:
    wrong = [
        answer
        for form in GOLDS[reward][1]
        for remark in ["", *table(REMARKS)]
        if value(reward, answer := announced.format(form) + remark) != 1.0
    ]
    assert not wrong


LINES = st.sampled_from([cell for cell in table(ANNOUNCED) if "\n" not in cell])
REMARK = st.sampled_from(table(REMARKS))
PAIR = st.sampled_from(FORMS)


@given(PAIR, LINES, st.lists(REMARK, max_size=3))
def test_any_announcement_with_any_remarks(pair: tuple[str, str], announced: str, remarks: list[str]) -> None:
    reward, form = pair
    assert value(reward, announced.format(form) + "".join(remarks)) >= (
        0.8 if reward == "anls" else float(reward != "exact_match")
    )


@example(("set_match", "oak, elm"), "The answer is {}, or maybe something else", [])
@given(PAIR, st.sampled_from(table(DENIALS)), st.lists(REMARK.filter(lambda r: r[0] == "\n"), max_size=2))
def test_no_remark_turns_a_denial_into_an_answer(
    pair: tuple[str, str], denial: str, remarks: list[str]
) -> None:
    reward, form = pair
    assert value(reward, denial.format(form) + "".join(remarks)) == 0.0


@given(st.integers(2, 10**6), st.sampled_from(table(BOUNDS)), st.sampled_from(["{}", "${}$", "**{}**"]))
def test_no_bound_is_a_number(number: int, bound: str, form: str) -> None:
    assert value("math", bound.format(form.format(number)), gold=str(number)) == 0.0


@pytest.mark.parametrize(
    "gold", ["at least 5", "x > 5", "≥ 5", "not prime", "no more than 3", "x \\neq 3", "5 < x < 7"]
)
def test_a_bound_is_right_where_the_reference_is_one(gold: str) -> None:
    for answer in (gold, f"The answer is {gold}.", f"\\boxed{{{gold}}}", f"<answer>{gold}</answer>"):
        assert value("math", answer, gold=gold) == 1.0, answer
        assert value("answer_accuracy", answer, gold=gold) == 1.0, answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 42, which is even.", "42"),
        ("The answer is D (see figure)", "D"),
        ("The answer is not 5 but 6", "6"),
        ("It isn't A, it's B.", "B."),
        ("答案不是A，而是B", "B"),
        ("42, not 41", "42"),
        ("B。不是A", "B"),
        ("D. It can't be A or B", "D"),
        ("The answer to what she holds is a cup.", "a cup."),
        ("The answer is St. Louis", "St. Louis"),
        ("\\[ \\text{Answer: D} \\]", "D"),
        ("The answers are as follows: 3, 4", "3, 4"),
        ("The answer is B. The answer is not A.", "B."),
        ("x = 2 (mod 7)", "x = 2 (mod 7)"),
        ("Not a bird.\nAnswer: 3", "3"),
        ("I hope this helps!", "I hope this helps!"),
    ],
)
def test_what_is_said_around_an_answer(text: str, answer: str) -> None:
    assert final_answer(text) == answer


def test_a_text_is_read_as_it_stands_too() -> None:
    assert readings("The answer is U.S. Steel, which is big") == ["U.S. Steel", "U.S. Steel, which is big"]
    assert readings("It is a **dog** here") == ["It is a **dog** here", "dog"]
    assert readings("The **dog** or the **cat**") == ["The **dog** or the **cat**"]


@pytest.mark.parametrize("word", ["42", "$42$"])
def test_what_belongs_to_another_clause_denies_nothing(word: str) -> None:
    for sentence in (
        f"Since it is not divisible by 5, the total is {word}",
        f"There are no more than 50, so we get {word}",
        f"It is not a prime. The sum is {word}",
    ):
        assert not taken_back(sentence, sentence.index(word), len(sentence))
        assert value("math", sentence, gold="42") == 1.0


@pytest.mark.parametrize(
    "sentence",
    [
        "So the total is **42** apples.", "因此，她一共有 **42页**。", "لذا، الناتج هو **42**.",
        "Also hat sie **42** Äpfel.",
        "Итак, всего **42** яблока.", "따라서 총 **42**개입니다.", "इसलिए कुल **42** सेब हैं।",
        "So **x = 42**.", "Total: **$42**",
        "Sie hat 42 Äpfel.", "彼女はりんごを42個持っています。", "Ella tiene 42 manzanas.",
        "उसके पास 42 सेब हैं।", "لديها 42 تفاحة.",
    ],
)  # fmt: skip
def test_the_number_of_a_sentence(sentence: str) -> None:
    assert value("math", sentence, gold="42") == 1.0
    assert value("math", sentence, gold="41") == 0.0


def test_of_two_bold_numbers_none_is_the_answer() -> None:
    assert value("math", "Either **41** or **42**.", gold="42") == 0.0
    assert value("math", "It has **2** sides and **3** corners, or **42**", gold="3") == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "\nNote this." * 20_000, "I hope. " * 20_000, "not " * 50_000, "at least " * 20_000,
        "answer to is " * 20_000,
        ", which" * 20_000, "(a b) " * 30_000, "but " * 50_000, "**a** " * 30_000, "😀" * 50_000,
        "<answer>a</answer>" * 10_000,
        "the answer is not " * 10_000, "答案不是" * 30_000, ". A" * 50_000, "\\boxed{1} or " * 10_000,
        "so " * 60_000,
        "$a$ " * 30_000, ">" * 50_000,
    ],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_hostile_wordings_cost_linear_time(text: str) -> None:
    begun = time.process_time()
    for reward in ("answer_accuracy", "math", "multiple_choice", "counting", "set_match", "exact_match"):
        value(reward, text)
    without_remarks(text)
    assert time.process_time() - begun < 4


@pytest.mark.parametrize(
    ("gold", "right", "wrong"),
    [
        ("yes", ["Yes, it is.", "Yes. The dog is on the left.", "Yes, there is no doubt it is."],
         ["No, it is not.", "Yes, no", "Yes, but no", "Yes, or maybe not", "yesterday, it was"]),
        ("no", ["No, there is no dog.", "No — it is red"], ["Yes, there is.", "No, wait, yes."]),
        ("是", ["是的，有一只狗。", "是，图中有狗"], ["不是，没有狗", "是的，但也可能不是"]),
        ("oui", ["Oui, il y a un chien."], ["Non, il n'y a pas de chien."]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("reward", ["answer_accuracy", "exact_match", "relaxed_accuracy"])
def test_yes_may_go_on_with_a_sentence(reward: str, gold: str, right: list[str], wrong: list[str]) -> None:
    def scored(answer: str) -> float:
        return value(reward, answer.lower(), gold=gold)

    assert [answer for answer in right if scored(answer) != 1] == []
    assert [answer for answer in wrong if scored(answer) != 0] == []


@pytest.mark.parametrize("reward", ["exact_match", "vqa_accuracy", "relaxed_accuracy", "squad_exact_match"])
@pytest.mark.parametrize("answer", ["**oslo**", "It is oslo", "It's oslo", "It looks like oslo"])
def test_a_text_may_be_led_up_to(reward: str, answer: str) -> None:
    assert value(reward, answer, gold=["oslo"] * 4) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "half of 5",
        "twice 5",
        "triple 5",
        "a third of 5",
        "5几个",
        "5多个",
        "5来个",
        "5余人",
        "5여 명",
        "5 times 2",
    ],
)
def test_a_multiple_of_a_number_counts_nothing(answer: str) -> None:
    assert value("counting", answer, gold=5) == 0.0


@pytest.mark.parametrize("answer", ["I have no idea", "not none", "no doubt about it", "no clue"])
def test_no_idea_is_no_zero(answer: str) -> None:
    assert value("counting", answer, gold=0) == 0.0


def test_a_total_may_come_before_its_parts() -> None:
    assert value("counting", "In total there are 5 dogs: 3 red and 2 blue.", gold=5) == 1.0


@pytest.mark.parametrize(
    "listed",
    [
        "{oak, elm}", "[oak, elm]", "\\{oak, elm\\}", "(oak, elm)", "['oak', 'elm']",
        "The trees are oak, elm.", "They include: oak, elm",
    ],
)  # fmt: skip
def test_a_set_may_stand_in_brackets_or_a_sentence(listed: str) -> None:
    assert value("set_match", listed) == 1.0


@pytest.mark.parametrize(
    "denial", ["not the {}", "The answer isn't {}", "{} is wrong", "It is anything but {}"]
)
@pytest.mark.parametrize("reward", ["token_f1", "squad_exact_match"])
def test_sharing_words_with_what_is_denied_pays_nothing(reward: str, denial: str) -> None:
    assert value(reward, denial.format("Grand Canyon"), gold="Grand Canyon") == 0.0


@pytest.mark.parametrize(
    ("sentence", "number"),
    [
        ("So she sold 72 clips altogether in April and May.", "72"),
        ("Janet makes 18 dollars every day at the farmers' market.", "18"),
        ("She has 9 apples left after giving some to Tom.", "9"),
        ("The car goes 20 meters per second on the road.", "20 m/s"),
    ],
)
def test_words_after_the_number_of_a_sentence_change_nothing(sentence: str, number: str) -> None:
    assert value("math", sentence, gold=number) == 1.0
    assert value("math", sentence, gold=number + "0") == 0.0


@pytest.mark.parametrize(
    "sentence",
    [
        "The car goes 20 km per hour on the road.", "So she sold 20 hundred clips in April and May.",
        "She sold 20 clips and five pens in April.", "She did not sell 20 clips in April and May.",
        "The price is 20 divided by the number of days", "It is 20 raised to the third power",
        "It is 20 times as long as the other one", "There are 20 clips or so in April",
    ],
)  # fmt: skip
def test_words_that_change_the_number_stay(sentence: str) -> None:
    assert value("math", sentence, gold="20 m/s") == 0.0
