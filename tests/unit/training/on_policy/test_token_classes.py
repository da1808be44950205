"""Digits of coordinates are told from other digits, and both from markup and text."""

from collections.abc import Callable

import pytest

from posttrain.training.on_policy.token_classes import CLASSES, TokenClasses


class Characters:
    """A tokenizer of single characters."""

    def decode(self, token_ids: list[int]) -> str:
        return "".join(map(chr, token_ids))


@pytest.fixture
def digits_of() -> Callable[[str], dict[str, str]]:
    """Returns the characters of each class of a turn."""

    def found(turn: str) -> dict[str, str]:
        ids = [ord(letter) for letter in "prompt 9" + turn]
        sampled = [False] * 8 + [True] * len(turn)
        classes = TokenClasses(Characters()).of(ids, sampled)
        assert len(classes) == len(turn)
        return {
            name: "".join(letter for letter, each in zip(turn, classes, strict=True) if each == number)
            for number, name in enumerate(CLASSES)
        }

    return found


@pytest.mark.parametrize(
    ("turn", "coordinates", "others"),
    [
        ('{"bbox_2d": [12, 345, 6, 789], "label": "car 3"}', "123456789", "3"),
        ('{"point_2d": [12, 345]} 2 of them', "12345", "2"),
        ('{"name": "image_zoom_in", "arguments": {"bbox_2d": [1, 2, 3, 4], "img_idx": 5}}', "1234", "5"),
        ("it is at (10, 20) in 2024", "1020", "2024"),
        ("<|box_start|>(12,34),(56,78)<|box_end|> 9", "12345678", "9"),
        ('{"bbox_2d": [12, 34', "1234", ""),
        ('{"points": [[1, 2], [3, 4]]}', "1234", ""),
        ("<point>12 34</point> 5", "1234", "5"),
        ('<point x="61.5" y="40.2" alt="7"/>', "615402", "7"),
        ('{"boxes": [[0.5, 1.25, 3, 4]]}', "05125" + "34", ""),
        ("3 [4] (5)", "", "345"),
        ("the answer is 42.", "", "42"),
    ],
)
def test_coordinates(digits_of: Callable, turn: str, coordinates: str, others: str) -> None:
    found = digits_of(turn)
    assert (found["coordinates"], found["digits"]) == (coordinates, others)


def test_markup_is_what_a_tool_call_is_written_in(digits_of: Callable) -> None:
    turn = 'I zoom.<tool_call>{"bbox_2d": [1, 2]}</tool_call><|im_end|>'
    found = digits_of(turn)
    assert found["text"] == "I zoom."
    assert found["markup"] == '<tool_call>{"bbox_2d": [, ]}</tool_call><|im_end|>'
    assert digits_of("Cut <tool_call>{off")["markup"] == "<tool_call>{off"
    marks = digits_of('I tap. *FUNCTION*: Tap\n*ARGS*: {"point": [3, 4]}\n*RESULT*: so')
    assert (marks["coordinates"], marks["markup"][-8:], marks["text"]) == ("34", "*RESULT*", "I tap. : so")


def test_turns_are_read_one_by_one() -> None:
    """What stands between two turns was not sampled, and joins nothing."""
    text = "[1, " + "tool" + "2]"
    sampled = [True] * 4 + [False] * 4 + [True] * 2
    classes = TokenClasses(Characters()).of([ord(each) for each in text], sampled)
    assert [CLASSES[each] for each in classes] == ["text", "digits", *["text"] * 2, "digits", "text"]
