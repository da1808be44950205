"""A turn that says nothing makes a row broken, whatever emptied it; a dialogue may teach nothing as well."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posttrain.config.data import Use
from posttrain.data.formats import DataError
from posttrain.data.sources import load_samples
from posttrain.data.uses import fits
from tests.unit.data.test_formats_in_containers import configured, stored
from tests.unit.data.test_formats_of_others import folder as folder
from tests.unit.data.test_unread_keys import ASK, SAY, SPOKEN, read, refused, talk

#: What can be seen of none of them.
BLANK = [
    "",
    " ",
    "\n\t",
    "\u00a0",
    "\u200b",
    "\ufeff",
    "\u2060\u00ad",
    "\u3164",
    "\u2800",
    "\u202e \u200f",
    "\x00",
    "\ufe0f",
    "\u034f \u180b",
    "\U000e0100",
    "\u0301",
]


@pytest.mark.parametrize("format_name", ["canonical", *SPOKEN])
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
@pytest.mark.parametrize("text", BLANK)
def test_blank_texts(folder: Path, format_name: str, role: str, text: str):
    turns = {
        "system": [{"role": "system", "content": text}, ASK, SAY],
        "user": [ASK | {"content": text}, SAY],
    }
    turns["assistant"] = [ASK, SAY | {"content": text, "train": False}]
    assert "says and shows nothing" in refused(folder, talk(*turns[role]), format_name)
    blocks = [{"type": "text", "text": text}, {"type": "text", "text": text}]
    turn = next(turn for turn in turns[role] if turn["role"] == role)
    row = talk(*({**each, "content": blocks} if each is turn else each for each in turns[role]))
    assert "says and shows nothing" in refused(folder, row, format_name)


@pytest.mark.parametrize("format_name", SPOKEN)
@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant"},
        {"role": "assistant", "content": None},
        {"role": "assistant", "content": []},
        {"role": "assistant", "content": "", "tool_calls": []},
        {"role": "assistant", "content": "<think>\n\n</think>\n\n"},
        {"role": "assistant", "content": " <think> </think>\n\n \u200b"},
        {"role": "assistant", "content": "<think>\u200b</think>"},
        {"role": "assistant", "content": "</think>\n\n"},
        {"role": "assistant", "content": "<think></think><think>\n"},
        {"role": "assistant", "content": "", "reasoning_content": "\u200b"},
        {"role": "assistant", "content": "", "refusal": "", "function_call": None},
    ],
)
def test_answers_that_are_emptied(folder: Path, format_name: str, turn: dict[str, Any]):
    assert "says and shows nothing" in refused(folder, talk(ASK, turn), format_name)


@pytest.mark.parametrize(
    ("row", "format_name"),
    [
        ({"query": "Q?", "response": ""}, "ms_swift"),
        ({"query": "Q?", "response": "A", "history": [["", "B"]]}, "ms_swift"),
        ({"prompt": "Q?", "completion": " "}, "trl"),
        ({"prompt": "", "completion": "A"}, "trl"),
        ({"prompt": "Q?", "chosen": "A", "rejected": ""}, "trl"),
        ({"instruction": "Q?", "output": ""}, "alpaca"),
        ({"conversations": [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": ""}]}, "sharegpt"),
        ({"problem": " "}, "easyr1"),
        ({"messages": [ASK], "chosen": "A", "rejected": "\n"}, "canonical"),
    ],
)
def test_rows_of_every_form_with_a_blank_text(folder: Path, row: dict[str, Any], format_name: str):
    assert "says and shows nothing" in refused(folder, row, format_name)


@pytest.mark.parametrize("format_name", ["openai", "ms_swift", "trl", "sharegpt"])
@pytest.mark.parametrize("key", ["value", "text", "says", "body", "parts"])
def test_what_is_said_under_another_key(folder: Path, format_name: str, key: str):
    said = "value" if format_name == "sharegpt" else "content"
    who = "from" if format_name == "sharegpt" else "role"
    key = "content" if key == said else key
    rows = [{who: "user", key: "Colour?"}, {who: "assistant", key: "Blue."}]
    column = "conversations" if format_name == "sharegpt" else "messages"
    reason = refused(folder, {column: rows}, format_name)
    assert repr(key) in reason
    assert key not in ("text", "says") or f"did you mean {said!r}" in reason


def test_a_tool_may_print_nothing(folder: Path):
    call = {"role": "assistant", "tool_calls": [{"name": "rm", "arguments": {}}]}
    silent = talk(ASK, call, {"role": "tool", "content": ""}, SAY)
    assert read(folder, silent, "openai").messages[2].text == ""
    for content in ({}, {"content": None}):
        assert "a tool said nothing" in refused(
            folder, talk(ASK, call, {"role": "tool"} | content, SAY), "openai"
        )


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.sampled_from("".join(BLANK)), max_size=6), st.text("aß中🙂.<", min_size=1, max_size=3))
def test_one_letter_is_enough(folder: Path, blank: str, seen: str):
    assert read(folder, talk(ASK, SAY | {"content": blank + seen + blank}), "openai").messages[1].text
    assert "says and shows nothing" in refused(folder, talk(ASK, SAY | {"content": blank}), "openai")


@pytest.mark.parametrize(
    ("row", "uses"),
    [
        (talk(ASK, SAY | {"train": False}), {"prompts"}),
        (talk(ASK, SAY | {"train": False}, ASK, SAY), {"prompts", "dialogues"}),
        (talk(ASK), {"prompts", "episodes"}),
        (talk(ASK, chosen="A", rejected="B"), {"prompts", "episodes", "pairs"}),
        (talk(ASK, chosen=[SAY | {"train": False}], rejected="B"), {"prompts", "episodes"}),
    ],
)
def test_what_teaches_nothing_serves_no_teaching(folder: Path, row: dict[str, Any], uses: set[Use]):
    sample = read(folder, row, "canonical")
    found: set[Use] = {use for use in ("prompts", "episodes", "dialogues", "pairs") if fits(sample, use)}
    assert found == uses


@pytest.mark.parametrize("container", ["jsonl", "json", "parquet"])
def test_an_empty_answer_is_counted_among_the_broken(folder: Path, container: str):
    rows = [talk(ASK, SAY | {"content": "" if n == 3 else f"A{n}"}) for n in range(150)]
    config = configured(stored(folder, container, rows), "openai")
    dataset = load_samples(config, folder, folder / "c", use="dialogues")
    assert (len(dataset), len(dataset.broken)) == (149, 1)
    with pytest.raises(DataError, match="1 of 150 rows"):
        load_samples(config, folder, folder / "c", max_bad_share=0.0)
