"""IFEval's section marks, dividers and languages, and where its own checks say what ours must say."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.types import RewardInput
from rewards.builtin.instruction_following import instruction_following
from rewards.reading.languages import languages_of

WORDS = st.lists(st.sampled_from("red blue marker table window answer".split()), min_size=1, max_size=6)


def keeps(answer: str, **constraint: Any) -> bool:
    result = instruction_following(RewardInput((), (), answer, columns={"constraints": [constraint]}))
    assert result is not None
    return result.value == 1


@pytest.mark.parametrize(
    ("answer", "value", "mark", "right"),
    [
        ("Section 1\nOne.\nSection 2\nTwo.", 2, "Section", True),
        ("SECTION 1:\nOne.\n\nSECTION 2:\nTwo.", 2, "Section", True),
        ("**Section 1**\nOne.\n**Section 2**\nTwo.\n**Section 3**\nThree.", 2, "SECTION", True),
        ("# Day 1\nWalk.\n# Day 2\nSwim.", 2, "Day", True),
        ("Part One 1 a\nPart One 2 b", 2, "Part  One", True),
        ("Section1 one Section2 two", 2, "Section", True),
        ("第1节 红\n第2节 蓝", 2, "第", False),
        ("Section 1\nOne.", 2, "Section", False),
        ("Section 1\nOne.\nSection 1\nTwo.", 2, "Section", False),
        ("Section 1\nSection 2\n", 2, "Section", False),
        ("Section 1\nOne.\nSection 2\n***", 2, "Section", False),
        ("Subsection 1 a subsection 2 b", 2, "Section", False),
        ("Section 1st a Section 2nd b", 2, "Section", False),
        ("Section A\nOne.\nSection B\nTwo.", 2, "Section", False),
        ("Section (1) one Section [2] two", 2, "Section", False),
    ],
)
def test_sections_with_a_mark_and_a_number(answer: str, value: int, mark: str, right: bool) -> None:
    assert keeps(answer, type="numbered_sections", value=value, mark=mark) is right


@pytest.mark.parametrize(
    ("answer", "value", "right"),
    [
        ("One.\n***\nTwo.", 2, True),
        ("One.\n\n***\n\nTwo.\nStill two.\n\n***\n\nThree.", 3, True),
        ("One. *** Two.", 2, True),
        ("***\nOne.\n***\nTwo.\n***", 2, True),
        ("One.", 1, True),
        ("One with **bold** and ***both***.\n***\nTwo.", 2, True),
        ("One.\n\nTwo.", 2, False),
        ("One.\n***\n***\nTwo.", 2, False),
        ("One.\n***\n...\n***\nTwo.", 3, False),
        ("One.\n***\nTwo.\n***\nThree.", 2, False),
        ("One.\n******\nTwo.", 2, False),
    ],
)
def test_paragraphs_with_a_divider(answer: str, value: int, right: bool) -> None:
    assert keeps(answer, type="divided_paragraphs", value=value) is right


def test_another_divider() -> None:
    assert keeps("a\n---\nb", type="divided_paragraphs", value=2, separator="---")
    assert not keeps("a\n***\nb", type="divided_paragraphs", value=2, separator="---")


@given(st.lists(WORDS, min_size=1, max_size=6), st.booleans(), st.integers(1, 7))
def test_dividers_are_counted_as_ifeval_does(parts: list[list[str]], ends: bool, value: int) -> None:
    text = "\n***\n".join(map(" ".join, parts)) + ("\n***" if ends else "")
    pieces = re.split(r"\s?\*\*\*\s?", text)  # what its ParagraphChecker does
    count = len(pieces) - sum(not piece.strip() for piece in (pieces[0], pieces[-1]))
    assert keeps(text, type="divided_paragraphs", value=value) is (count == value)


@given(
    st.lists(WORDS, min_size=1, max_size=6), st.sampled_from(["Section", "SECTION", "Day"]), st.integers(1, 7)
)
def test_sections_are_counted_as_ifeval_does(parts: list[list[str]], mark: str, value: int) -> None:
    text = "\n".join(f"{mark} {i}\n{' '.join(part)}" for i, part in enumerate(parts, 1))
    count = len(re.split(rf"\s?{mark}\s?\d+\s?", text)) - 1  # what its SectionChecker does
    assert keeps(text, type="numbered_sections", value=value, mark=mark) is (count >= value)


@pytest.mark.parametrize(
    ("answer", "mark", "right"),
    [
        ("Text.\nP.S. More.", "P.S.", True),
        ("Text.\nP. S. More.", "P.S.", True),
        ("Text.\n**P.P.S** More.", "P.P.S", True),
        ("Text.\np. p. s. more", "P.P.S", True),
        ("Text.\nP.S.", "P.S.", False),
        ("P.S. Alone.", "P.S.", False),
        ("Text.\nPS More.", "P.S.", False),
        ("Text. P.S. More.", "P.S.", False),
    ],
)
def test_postscripts(answer: str, mark: str, right: bool) -> None:
    assert keeps(answer, type="postscript", value=mark) is right


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("One.\n******\nTwo.", True),
        ("******\nOne.\n******\nTwo.\n******", True),
        ("One.\n******\nOne.", False),
        ("One.\n******\n\n******\nTwo.", False),
        ("One.\n******", False),
        ("******", False),
    ],
)
def test_two_responses(answer: str, right: bool) -> None:
    assert keeps(answer, type="responses", value=2) is right


#: Sentences of two lengths in each language that a writing system or its words give away.
SENTENCES = {
    "hi": "मैंने कल उसे पत्र लिखा था, लेकिन उसने जवाब नहीं दिया। भारत में बहुत से लोग रहते हैं।",
    "mr": "हा एक खूप सुंदर दिवस आहे आणि आम्ही बाजारात जात आहोत. राजधानी मुंबई आहे.",
    "ne": "यो एक धेरै सुन्दर दिन हो र हामी बजार जाँदैछौं। मलाई किताब पढ्न मन पर्छ।",
    "pa": "ਇਹ ਬਹੁਤ ਸੋਹਣਾ ਦਿਨ ਹੈ ਅਤੇ ਅਸੀਂ ਬਾਜ਼ਾਰ ਜਾ ਰਹੇ ਹਾਂ।",
    "gu": "આ ખૂબ સુંદર દિવસ છે અને અમે બજારમાં જઈ રહ્યા છીએ.",
    "kn": "ಇದು ತುಂಬಾ ಸುಂದರವಾದ ದಿನ ಮತ್ತು ನಾವು ಮಾರುಕಟ್ಟೆಗೆ ಹೋಗುತ್ತಿದ್ದೇವೆ.",
    "ml": "ഇത് വളരെ മനോഹരമായ ഒരു ദിവസമാണ്, ഞങ്ങൾ ചന്തയിലേക്ക് പോകുന്നു.",
    "si": "මෙය ඉතා ලස්සන දවසක් වන අතර අපි වෙළඳපොළට යමු.",
    "or": "ଏହା ବହୁତ ସୁନ୍ଦର ଦିନ ଏବଂ ଆମେ ବଜାରକୁ ଯାଉଛୁ।",
    "ka": "ეს ძალიან ლამაზი დღეა და ჩვენ ბაზარში მივდივართ.",
    "hy": "Սա շատ գեղեցիկ օր է, և մենք գնում ենք շուկա։",
    "am": "ይህ በጣም ቆንጆ ቀን ነው እና ወደ ገበያ እየሄድን ነው።",
    "km": "នេះជាថ្ងៃដ៏ស្រស់ស្អាតណាស់ ហើយយើងកំពុងទៅផ្សារ។",
    "my": "ဒီနေ့ အရမ်းလှပတဲ့ နေ့တစ်နေ့ပါ၊ ကျွန်တော်တို့ ဈေးကို သွားနေပါတယ်။",
    "lo": "ນີ້ແມ່ນມື້ທີ່ສວຍງາມຫຼາຍ ແລະພວກເຮົາກໍາລັງໄປຕະຫຼາດ.",
}


@pytest.mark.parametrize("code", SENTENCES)
def test_languages_of_ifeval_and_their_neighbours(code: str) -> None:
    assert languages_of(SENTENCES[code]) == {code}
    for other, sentence in SENTENCES.items():
        assert keeps(sentence, type="language", value=code) is (other == code)
    assert keeps("42", type="language", value=code)  # too short to tell
    assert not keeps("This is plain English, and a good deal of it.", type="language", value=code)


def test_a_short_text_in_devanagari_may_be_any_of_its_languages() -> None:
    assert languages_of("नमस्कार बाजार") == {"hi", "mr", "ne"}
