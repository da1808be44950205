"""Texts that speak of `<image>`, pairs that repeat their prompt, and what is said of rows that do not fit."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trl.data_utils import maybe_extract_prompt

from posttrain.config import ConfigError, load_dataset_config
from posttrain.data.formats import DataError, read_canonical, write_canonical
from posttrain.data.sources import load_samples
from posttrain.types import text_message
from tests.unit.data.test_formats_in_containers import configured, stored
from tests.unit.data.test_formats_of_others import folder as folder
from tests.unit.data.test_unread_keys import ASK, SAY, SPOKEN, read, refused, talk

PICTURE = {"type": "image", "image": "a.png"}
CLIP = {"type": "image"}


def words(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


@pytest.mark.parametrize("format_name", ["canonical", *SPOKEN])
@pytest.mark.parametrize("tag", ["<image>", "<video>"])
@pytest.mark.parametrize(
    ("turns", "shown"),
    [
        ([ASK, SAY | {"content": "Write {}."}], 0),
        ([{"role": "system", "content": "Never write {}."}, ASK, SAY], 0),
        ([ASK | {"content": [words("What does {} do?")]}, SAY], 0),
        ([ASK | {"content": [PICTURE, words("Which tag?")]}, SAY | {"content": "{}"}], 1),
        ([ASK | {"content": [PICTURE, words("Is {} right?")]}, SAY | {"content": "{} is."}], 1),
    ],
)
def test_a_text_may_speak_of_a_placeholder(
    folder: Path, format_name: str, tag: str, turns: list[dict[str, Any]], shown: int
):
    def told(content: Any) -> Any:
        if isinstance(content, list):
            return [block | ({"text": told(block["text"])} if "text" in block else {}) for block in content]
        return content.replace("{}", tag)

    row = talk(*({**turn, "content": told(turn["content"])} for turn in turns))
    sample = read(folder, row, format_name)
    assert sum(message.text.count(tag) for message in sample.messages) == str(turns).count("{}")
    assert sum(len(message.images) for message in sample.messages) == shown
    write_canonical([sample], folder / "out.jsonl")
    assert list(read_canonical(folder / "out.jsonl")) == [sample]


@pytest.mark.parametrize("format_name", ["canonical", *SPOKEN])
@pytest.mark.parametrize("role", ["user", "tool"])
def test_a_place_without_its_image_is_refused(folder: Path, format_name: str, role: str):
    turns = [ASK | {"content": "<image>What?"}, SAY]
    if role == "tool":
        turns = [ASK, SAY, {"role": "tool", "content": "<image>"}, SAY]
    assert "block of the type image" in refused(folder, talk(*turns), format_name)
    assert "block of the type image" in refused(folder, talk(*turns, images=[]), format_name)


@pytest.mark.parametrize("format_name", ["canonical", "openai"])
def test_listed_images_take_their_places_and_no_others(folder: Path, format_name: str):
    in_text = talk(ASK | {"content": "<image>Which tag?"}, SAY | {"content": "<image>"}, images=["a.png"])
    by_block = talk(ASK | {"content": [CLIP, words("Is <image> right?")]}, SAY, images=["a.png"])
    for row, said in ((in_text, ["Which tag?", "<image>"]), (by_block, ["Is <image> right?", "Nine miles."])):
        sample = read(folder, row, format_name)
        assert [message.text for message in sample.messages] == said
        assert [len(message.images) for message in sample.messages] == [1, 0]
    assert "has 2 places" in refused(
        folder, talk(ASK | {"content": "<image><image>"}, SAY, images=["a.png"]), format_name
    )


TURNS = st.lists(st.text("ab ", min_size=1, max_size=4).map("x{}".format), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TURNS, st.booleans(), st.booleans(), st.sampled_from(["absent", "last", "all"]), st.booleans())
def test_pairs_of_whole_dialogues(
    folder: Path, asked: list[str], system: bool, again: bool, prompt: str, spoken: bool
):
    begun = [{"role": "system", "content": "S"}] if system else []
    for text in asked:
        begun += [{"role": "user", "content": text}, {"role": "assistant", "content": "ok"}]
    begun.pop()
    row: dict[str, Any] = {
        "chosen": [*begun, {"role": "assistant", "content": "Pear."}],
        "rejected": [*begun, {"role": "assistant", "content": "Brick."}],
    }
    theirs = maybe_extract_prompt(dict(row))
    row |= {"messages": row["chosen"]} if again else {}
    if prompt != "absent":
        wanted = begun if prompt == "all" else begun[-1:]
        row["prompt"] = wanted if spoken or prompt == "all" else begun[-1]["content"]
    sample = read(folder, row, "trl")
    assert [message.text for message in sample.messages] == [turn["content"] for turn in theirs["prompt"]]
    assert sample.chosen == (text_message("assistant", "Pear."),)
    assert sample.rejected == (text_message("assistant", "Brick."),)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"prompt": "Another?"}, "another prompt"),
        ({"messages": [ASK, SAY | {"content": "Plum."}]}, "drop_columns: [messages]"),
        ({"completion": "Plum."}, "drop_columns: [completion]"),
    ],
)
def test_pairs_that_say_two_things(folder: Path, columns: dict[str, Any], reason: str):
    row = {"chosen": [ASK, SAY], "rejected": [ASK, SAY | {"content": "Ten."}]} | columns
    assert reason in refused(folder, row, "trl")


def test_a_prompt_beside_the_messages_says_it_again(folder: Path):
    turns = [ASK, SAY, ASK | {"content": "Sure?"}, SAY]
    for prompt in ("How far?", "Sure?", turns[:1], turns[:3]):
        assert len(read(folder, talk(*turns, prompt=prompt), "trl").messages) == 4
    assert "drop_columns: [prompt]" in refused(folder, talk(*turns, prompt="How high?"), "trl")


def test_rejected_images(folder: Path):
    row = talk(ASK, SAY, images=["a.png"], rejected_images=["a.png"], rejected_response="Ten.")
    assert read(folder, row, "ms_swift").rejected[0].text == "Ten."
    assert "drop_columns: [rejected_images]" in refused(
        folder, row | {"rejected_images": ["b.png"]}, "ms_swift"
    )


@pytest.mark.parametrize(
    ("row", "format_name", "reason"),
    [
        ({"conversation": [{"from": "human", "value": "x"}]}, "sharegpt", "columns: {conversations: …}"),
        (
            {"conversations": [{"from": "chatgpt", "value": "x"}]},
            "sharegpt",
            "tags: {assistant_tag: chatgpt}",
        ),
        ({"conversations": [ASK, SAY]}, "sharegpt", "role_tag: role"),
        ({"messages": [{"from": "human", "value": "x"}]}, "openai", "format: sharegpt"),
        ({"instruction": {"a": 1}, "output": "x"}, "alpaca", "they are texts"),
    ],
)
def test_what_to_write_instead(folder: Path, row: dict[str, Any], format_name: str, reason: str):
    assert reason in refused(folder, row, format_name)


def test_packed_rows_are_named(folder: Path):
    path = folder / "rows.json"
    path.write_text('[[{"messages": []}, {"messages": []}]]')
    with pytest.raises(DataError, match="a list of rows, as packed data"):
        load_samples(configured(path, "openai"), folder, folder / "c")


GENERATOR = """
import json

def write(folder, count):
    rows = [{"messages": [{"role": "user", "content": "Q"}], "image_link": "x", "n": n} for n in range(count)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + chr(10) for row in rows))
"""


def test_what_a_generator_writes_is_kept_dropped_and_filtered_as_well(folder: Path):
    (folder / "mine.py").write_text(GENERATOR)

    def load(options: str) -> Any:
        (folder / "mine.yaml").write_text(
            "name: mine\ndescription: D\nlicence: CC0-1.0\n"
            f"source: {{generator: 'mine.py:write', params: {{count: 4}}}}\n{options}"
        )
        return load_samples("mine.yaml", folder, folder / "c")

    with pytest.raises(DataError, match=r"keep_columns: \[image_link\]"):
        load("")
    kept = load("keep_columns: [image_link]\nfilters: [{column: image_link, equals: x}, {column: n, min: 2}]")
    assert [kept[n].columns for n in range(2)] == [{"image_link": "x", "n": n} for n in (2, 3)]
    assert load("drop_columns: [image_link]")[0].columns == {"n": 0}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("keep_columns: [messages]", "canonical reads it"),
        ("keep_columns: [a]\ndrop_columns: [a]", "dropped as well"),
    ],
)
def test_columns_that_cannot_be_kept(folder: Path, options: str, reason: str):
    path = stored(folder, "jsonl", [talk(ASK, SAY)])
    (folder / "mine.yaml").write_text(
        f"name: mine\ndescription: D\nlicence: CC0-1.0\nsource: {{path: {path.name}}}\n{options}"
    )
    with pytest.raises(ConfigError, match=reason):
        load_dataset_config("mine.yaml", folder)
