"""The same dialogues in every tool's own form are the same samples."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor
from trl.data_utils import extract_prompt

from posttrain.data.formats import DataError, canonical_row, read_canonical, sample_of, write_canonical
from posttrain.data.formats.dialogues import reply
from posttrain.types import Block, ImageRef, Message, Sample, ToolSpec, text_message

SCHEMA = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}


def encoded(colour: str) -> bytes:
    Image.new("RGB", (8, 8), colour).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(encoded((name[0] == "a" and "red") or "blue"))
    return tmp_path


def read(folder: Path, row: dict[str, Any], format_name: str, **options: Any) -> Sample:
    return sample_of({"id": "1"} | canonical_row(row, format_name, **options), folder)


def image(folder: Path, name: str) -> Block:
    return Block("image", image=ImageRef(str(folder / name)))


def asked(folder: Path) -> Message:
    return Message("user", (image(folder, "a.png"), Block("text", text="What is it?")))


ONE_TURN = {
    "ms_swift": {
        "messages": [
            {"role": "user", "content": "<image>What is it?"},
            {"role": "assistant", "content": "Red."},
        ],
        "images": ["a.png"],
    },
    "sharegpt": {
        "conversations": [{"from": "human", "value": "<image>What is it?"}, {"from": "gpt", "value": "Red."}],
        "images": ["a.png"],
    },
    "qwen": {
        "image": "a.png",
        "conversations": [
            {"from": "user", "value": "<image>What is it?"},
            {"from": "assistant", "value": "Red."},
        ],
    },
    "alpaca": {"instruction": "<image>What is it?", "input": "", "output": "Red.", "images": ["a.png"]},
    "trl": {
        "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}],
        "completion": [{"role": "assistant", "content": "Red."}],
        "images": ["a.png"],
    },
    "openai": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "a.png"}},
                    {"type": "text", "text": "What is it?"},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "Red."}]},
        ]
    },
    "canonical": {
        "messages": [
            {"role": "user", "content": "<image>What is it?"},
            {"role": "assistant", "content": "Red."},
        ],
        "images": ["a.png"],
    },
}


@pytest.mark.parametrize("format_name", ONE_TURN)
def test_one_dialogue_in_every_form(folder: Path, format_name: str):
    row = ONE_TURN[format_name] | {"source": "web"}
    expected = Sample("1", (asked(folder), text_message("assistant", "Red.")), columns={"source": "web"})
    assert read(folder, row, format_name) == expected


PAIRS = {
    "ms_swift": ONE_TURN["ms_swift"] | {"rejected_response": "Blue."},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "<image>What is it?"}],
        "images": ["a.png"],
        "chosen": {"from": "gpt", "value": "Red."},
        "rejected": {"from": "gpt", "value": "Blue."},
    },
    "alpaca": {
        "instruction": "<image>What is it?",
        "chosen": "Red.",
        "rejected": "Blue.",
        "images": ["a.png"],
    },
    "trl": {"prompt": "<image>What is it?", "chosen": "Red.", "rejected": "Blue.", "images": ["a.png"]},
    "openai": {
        "input": {"messages": ONE_TURN["openai"]["messages"][:1]},
        "preferred_output": [{"role": "assistant", "content": "Red."}],
        "non_preferred_output": [{"role": "assistant", "content": "Blue."}],
    },
    "canonical": {
        "messages": [{"role": "user", "content": "<image>What is it?"}],
        "images": ["a.png"],
        "chosen": "Red.",
        "rejected": [{"role": "assistant", "content": "Blue."}],
    },
}


@pytest.mark.parametrize("format_name", PAIRS)
def test_one_pair_in_every_form(folder: Path, format_name: str):
    sample = read(folder, PAIRS[format_name], format_name)
    assert sample == Sample(
        "1",
        (asked(folder),),
        chosen=(text_message("assistant", "Red."),),
        rejected=(text_message("assistant", "Blue."),),
    )
    write_canonical([sample], folder / "out.jsonl")
    assert list(read_canonical(folder / "out.jsonl")) == [sample]


def test_an_implicit_prompt_is_what_trl_takes_it_for(folder: Path):
    prompt = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Go"},
    ]
    row: dict[str, Any] = {key: [*prompt, *reply(key)] for key in ("chosen", "rejected")}
    sample, theirs = read(folder, row, "trl"), extract_prompt(row)
    assert [message.text for message in sample.messages] == [item["content"] for item in theirs["prompt"]]
    assert sample.chosen[0].text == theirs["chosen"][0]["content"]


def test_a_problem_for_rl(folder: Path):
    row = {
        "question": "<image>What is it?",
        "solution": {"final": "red"},
        "images": ["a.png"],
        "answer": "no",
    }
    columns = {"problem": "question", "answer": "solution.final"}
    row.pop("answer")
    assert read(folder, row, "easyr1", columns=columns) == Sample("1", (asked(folder),), "red")


@pytest.mark.parametrize(
    ("asked_for", "images"),
    [
        ("First <image> then <image>, same?", {"image": ["a.png", "b.png"]}),
        ("First <img>a.png</img> then <img> b.png </img>, same?", {}),
    ],
)
def test_several_images_go_where_they_are_named(folder: Path, asked_for: str, images: dict[str, Any]):
    turns = [{"from": "human", "value": asked_for}, {"from": "gpt", "value": "No."}]
    (question, _) = read(folder, {"conversations": turns} | images, "qwen").messages
    said = [block.text or Path(str(block.image and block.image.path)).name for block in question.content]
    assert said == ["First ", "a.png", " then ", "b.png", ", same?"]


@pytest.mark.parametrize("format_name", ["ms_swift", "trl"])
def test_images_that_no_text_names_come_first_where_the_tool_has_it_so(folder: Path, format_name: str):
    turns = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": "Red."},
    ]
    sample = read(folder, {"messages": turns, "images": ["a.png"]}, format_name)
    assert sample.messages[1] == asked(folder)


@pytest.mark.parametrize("format_name", ONE_TURN)
@pytest.mark.parametrize("images", [[], ["a.png", "b.png"]])
def test_counts_that_differ_are_an_error(folder: Path, format_name: str, images: list[str]):
    text = "<image>What is it?"
    rows = {
        "sharegpt": {"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "Red."}]},
        "alpaca": {"instruction": text, "output": "Red."},
    }
    rows["qwen"] = rows["sharegpt"]
    row = rows.get(format_name, {"messages": [{"role": "user", "content": text}]}) | {"images": images}
    with pytest.raises(DataError, match="<image>"):
        read(folder, row, format_name)


def test_calls_and_thinking_are_written_as_the_template_writes_them(tiny_checkpoint: Path, folder: Path):
    call = {"type": "function", "function": {"name": "add", "arguments": {"x": [1, "é"]}}}
    said: list[dict[str, Any]] = [
        {"role": "user", "content": "Add"},
        {"role": "assistant", "content": "Well", "tool_calls": [call, call]},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "Done"},
    ]
    tools = [{"type": "function", "function": SCHEMA}]
    processor: Any = AutoProcessor.from_pretrained(tiny_checkpoint)
    whole = processor.apply_chat_template(said, tools=tools, tokenize=False)
    in_json = [
        item | {"tool_calls": [_as_text(call) for call in item.get("tool_calls", [])]} for item in said
    ]
    for row in ({"messages": said, "tools": tools}, {"messages": in_json, "tools": json.dumps([SCHEMA])}):
        sample = read(folder, row, "openai")
        assert sample.tools == (ToolSpec(**SCHEMA),)
        plain = [{"role": message.role, "content": message.text} for message in sample.messages]
        assert processor.apply_chat_template(plain, tools=tools, tokenize=False) == whole


def _as_text(call: dict[str, Any]) -> dict[str, Any]:
    arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return {"function": call["function"] | {"arguments": arguments}}


def test_the_same_calls_in_sharegpt_and_ms_swift(folder: Path):
    call = text = '{"name": "add", "arguments": {"x": 1}}'
    turns = [
        ("user", "Add"),
        ("assistant", "Well"),
        ("tool_call", call),
        ("tool_response", "3"),
        ("assistant", "3"),
    ]
    names = {
        "tool_call": "function_call",
        "tool_response": "observation",
        "user": "human",
        "assistant": "gpt",
    }
    swift = {"messages": [{"role": role, "content": said} for role, said in turns]}
    sharegpt = {"conversations": [{"from": names[role], "value": said} for role, said in turns]}
    sample = read(folder, swift, "ms_swift")
    assert read(folder, sharegpt, "sharegpt") == sample
    assert sample.messages[1].text == f"Well\n<tool_call>\n{text}\n</tool_call>"
    assert [message.role for message in sample.messages] == ["user", "assistant", "tool", "assistant"]


def test_thinking_and_loss_marks(folder: Path):
    messages = [
        {"role": "developer", "content": "S"},
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "A", "reasoning_content": "hm", "weight": 0},
    ]
    sample = read(folder, {"messages": messages}, "openai")
    assert sample.messages[2].text == "<think>\nhm\n</think>\n\nA"
    assert [message.train for message in sample.messages] == [None, None, False]


def test_system_history_and_tags(folder: Path):
    row = {"instruction": "And", "input": "now?", "output": "C", "system": "S", "history": [["A?", "B"]]}
    texts = [message.text for message in read(folder, row, "alpaca").messages]
    assert texts == ["S", "A?", "B", "And\nnow?", "C"]
    swift = {"query": "And\nnow?", "response": "C", "system": "S", "history": [["A?", "B"]]}
    assert [message.text for message in read(folder, swift, "ms_swift").messages] == texts
    tags = {"role_tag": "who", "content_tag": "says", "user_tag": "Q", "assistant_tag": "A"}
    turns = [{"who": "Q", "says": "1"}, {"who": "A", "says": "2"}]
    sample = read(folder, {"talk": turns}, "sharegpt", columns={"conversations": "talk"}, tags=tags)
    assert [message.role for message in sample.messages] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("row", "format_name", "reason"),
    [
        ({"prompt": "a", "completion": "b", "label": True}, "trl", "half a preference pair"),
        ({"text": "a"}, "trl", 'neither "messages" nor "prompt"'),
        ({"messages": [{"role": "bot", "content": "a"}]}, "openai", "role 'bot' is none of"),
        (
            {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
            "openai",
            "neither a text nor an image",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "openai", "names no image"),
        ({"messages": "hi"}, "openai", "list of objects"),
        ({"query": "a", "history": ["b"]}, "ms_swift", "pairs"),
        ({"instruction": None}, "alpaca", "neither"),
        ({"answer": 1}, "easyr1", '"problem"'),
        ({"problem": "a", "messages": 1}, "easyr1", "no column 'messages'; drop it"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "trl", "are the same"),
        ({"prompt": "a", "chosen": "b"}, "trl", '"rejected" must begin'),
        ({"messages": [{"role": "user", "content": "a"}], "tools": "{"}, "openai", "the tools"),
        ({"conversations": [{"from": "user", "value": "<img>a</img>"}], "image": "b"}, "qwen", "one of the"),
        (
            {"messages": [{"role": "user", "content": "a"}], "tools": [{"name": 1}]},
            "openai",
            'needs a "name"',
        ),
    ],
)
def test_what_no_stage_can_use_is_refused(folder: Path, row: dict[str, Any], format_name: str, reason: str):
    with pytest.raises(DataError, match=reason):
        read(folder, row, format_name)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(
    lambda text: "<image>" not in text
)
SAID = TEXT.map("say {}".format)
ROUNDS = st.lists(st.tuples(TEXT, st.booleans(), SAID, SAID), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ROUNDS, st.text("abc", max_size=3), st.dictionaries(st.sampled_from("xyz"), st.integers(), max_size=2))
def test_any_dialogue_is_the_same_in_every_form_and_once_converted(
    folder: Path, rounds: list[tuple[str, bool, str, str]], system: str, columns: dict[str, int]
):
    said = [("system", system)] if system else []
    images: list[str] = []
    expected = [text_message("system", system)] if system else []
    for number, (before, shows, after, answer) in enumerate(rounds):
        images += ["ab"[number % 2] + ".png"] if shows else []
        said += [("user", f"{before}{'<image>' * shows}{after}"), ("assistant", answer)]
        texts = [before] if shows else [before + after]
        blocks = [Block("text", text=text) for text in texts if text]
        blocks += [image(folder, images[-1]), Block("text", text=after)] if shows else []
        expected += [Message("user", tuple(blocks)), text_message("assistant", answer)]
    messages = [{"role": role, "content": text} for role, text in said]
    forms = {"qwen": {"conversations": [{"from": a, "value": b} for a, b in said], "image": images}}
    forms |= {
        name: {"messages": messages, "images": images} for name in ("canonical", "ms_swift", "trl", "openai")
    }
    samples = [read(folder, row | columns, name) for name, row in forms.items()]
    assert samples == [Sample("1", tuple(expected), columns=columns)] * len(forms)
    write_canonical(samples, folder / "out.jsonl")
    assert list(read_canonical(folder / "out.jsonl")) == samples


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "role",
                    "content",
                    "from",
                    "value",
                    "type",
                    "text",
                    "image",
                    "tool_calls",
                    "function",
                    "name",
                    "arguments",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
KEYS = [
    "messages",
    "images",
    "image",
    "chosen",
    "rejected",
    "prompt",
    "tools",
    "conversations",
    "query",
    "input",
    "problem",
    "history",
    "system",
    "instruction",
    "rejected_messages",
]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=5), st.sampled_from([*ONE_TURN, "easyr1"]))
def test_any_row_is_a_sample_or_a_data_error(folder: Path, row: dict[str, Any], format_name: str):
    try:
        sample = read(folder, row, format_name)
    except DataError:
        return
    write_canonical([sample], folder / "out.jsonl")
    assert list(read_canonical(folder / "out.jsonl")) == [sample]
