"""A key that nobody reads is honoured or refused by name: in messages, blocks, calls and columns."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posttrain.data.formats import DataError, canonical_row, read_canonical, sample_of, write_canonical
from posttrain.data.formats.free_columns import FREE, is_suspect
from posttrain.data.formats.keys import LEARNING_KEYS, MESSAGE_KEYS, THINKING_KEYS, TURN_KEYS
from posttrain.data.sources import load_samples
from posttrain.types import Sample
from tests.unit.data.test_formats_in_containers import configured, stored
from tests.unit.data.test_formats_of_others import ONE_TURN, SCHEMA, encoded
from tests.unit.data.test_formats_of_others import folder as folder

ASK = {"role": "user", "content": "How far?"}
SAY = {"role": "assistant", "content": "Nine miles."}
#: Formats whose rows are messages by role and content.
SPOKEN = ("openai", "trl", "ms_swift")


def read(folder: Path, row: dict[str, Any], format_name: str, **options: Any) -> Sample:
    if format_name != "canonical" or options:
        row = canonical_row(row, format_name, **options)
    named: dict[str, Any] = {"id": "1"} | row
    return sample_of(named, folder)


def talk(*turns: dict[str, Any], **columns: Any) -> dict[str, Any]:
    return {"messages": list(turns), **columns}


def refused(folder: Path, row: dict[str, Any], format_name: str) -> str:
    with pytest.raises(DataError) as error:
        read(folder, row, format_name)
    return str(error.value)


@pytest.mark.parametrize("format_name", SPOKEN)
@pytest.mark.parametrize("key", sorted(LEARNING_KEYS))
@pytest.mark.parametrize(
    ("mark", "learned"), [(0, False), (1, True), (False, False), (1.0, True), (None, None)]
)
def test_whether_a_turn_is_learned(folder: Path, format_name: str, key: str, mark: Any, learned: bool | None):
    turns = [ASK, SAY | {key: mark}, ASK, SAY]
    assert [each.train for each in read(folder, talk(*turns), format_name).messages] == [
        None,
        learned,
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        (SAY | {"weight": 0.5}, "weight"),
        (SAY | {"loss_mask": [0, 1]}, "loss_mask"),
        (SAY | {"training": "false"}, "training"),
        (SAY | {"loss": True, "weight": 0}, "different things"),
        (ASK | {"loss": True}, "only assistant turns"),
    ],
)
def test_marks_that_mean_nothing_are_refused(folder: Path, turn: dict[str, Any], reason: str):
    turns = [turn, SAY] if turn["role"] == "user" else [ASK, turn]
    assert reason in refused(folder, talk(*turns), "openai")


@pytest.mark.parametrize("format_name", SPOKEN)
@pytest.mark.parametrize("key", THINKING_KEYS)
def test_thinking_by_every_name(folder: Path, format_name: str, key: str):
    sample = read(folder, talk(ASK, SAY | {key: "Two legs."}), format_name)
    assert sample.messages[1].text == "<think>\nTwo legs.\n</think>\n\nNine miles."


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"reasoning": "a", "thinking": "b"}, "differ"),
        ({"thinking": ["a"]}, "must be a text"),
        ({"thinking": "a", "content": "<think>a</think>b"}, "twice"),
        ({"refusal": "No.", "content": "Yes."}, "refusal"),
        ({"tool_calls": [{"name": "a"}], "function_call": {"name": "a"}}, "keep one"),
        ({"tool_calls": [{"name": "a", "args": {}}], "content": "", "x": None}, "did you mean 'arguments'"),
        ({"tool_calls": [{"function": {"name": "a"}, "result": "7"}]}, "'result'"),
    ],
)
def test_what_an_assistant_may_not_say(folder: Path, keys: dict[str, Any], reason: str):
    row = talk(ASK, SAY | keys)
    if "args" in str(keys):
        row["messages"][1]["tool_calls"][0]["args"] = {"x": 1}
    assert reason in refused(folder, row, "openai")


CALL = {"name": "add", "arguments": {"x": 1}}
WRITTEN = '<tool_call>\n{"name": "add", "arguments": {"x": 1}}\n</tool_call>'


@pytest.mark.parametrize(
    ("format_name", "turn"),
    [
        ("openai", {"role": "assistant", "content": None, "function_call": CALL}),
        ("openai", {"role": "assistant", "function_call": CALL | {"arguments": '{"x": 1}'}}),
        ("openai", {"role": "assistant", "tool_calls": [{"name": "add", "parameters": {"x": 1}}]}),
        ("openai", {"role": "assistant", "tool_calls": json.dumps([{"function": CALL}])}),
        ("ms_swift", {"role": "tool_call", "content": json.dumps(CALL)}),
        ("ms_swift", {"role": "tool_call", "content": CALL}),
        ("ms_swift", {"role": "tool_call", "content": [CALL]}),
        ("ms_swift", {"role": "tool_call", **CALL}),
    ],
)
def test_calls_in_every_form(folder: Path, format_name: str, turn: dict[str, Any]):
    assert read(folder, talk(ASK, turn), format_name).messages[1].text == WRITTEN


@pytest.mark.parametrize("gap", ["", "\n\n", " \n"])
def test_a_call_after_its_thinking(folder: Path, gap: str):
    said = [("human", "Add"), ("function_call", f"<think>\nhm\n</think>{gap}{json.dumps(CALL)}")]
    row = {"conversations": [{"from": role, "value": text} for role, text in said]}
    assert read(folder, row, "sharegpt").messages[1].text == f"<think>\nhm\n</think>{gap}{WRITTEN}"
    row["conversations"][1]["value"] = "Let me see " + json.dumps(CALL)
    assert "a call" in refused(folder, row, "sharegpt")


@pytest.mark.parametrize(("text", "call"), [(None, False), (True, False), (False, None), (False, True)])
def test_a_turn_is_not_learned_in_part(folder: Path, text: bool | None, call: bool | None):
    turns = [ASK, SAY | {"loss": text}, {"role": "tool_call", "content": json.dumps(CALL), "loss": call}]
    assert "as a whole" in refused(folder, talk(*turns), "ms_swift")
    turns[1]["loss"] = turns[2]["loss"] = False
    assert read(folder, talk(*turns), "ms_swift").messages[1].train is False


@pytest.mark.parametrize("format_name", SPOKEN)
@pytest.mark.parametrize("column", ["tools", "functions", "tool_defs"])
@pytest.mark.parametrize("form", [list, json.dumps])
def test_tools_by_every_name(folder: Path, format_name: str, column: str, form: Any):
    sample = read(folder, talk(ASK, SAY, **{column: form([SCHEMA])}), format_name)
    assert [getattr(tool, "name", tool) for tool in sample.tools] == ["add"]
    in_text = [SCHEMA | {"parameters": json.dumps(SCHEMA["parameters"])}]
    assert read(folder, talk(ASK, SAY, **{column: in_text}), format_name).tools == sample.tools


@pytest.mark.parametrize("format_name", [*SPOKEN, "sharegpt", "qwen", "alpaca", "easyr1"])
def test_a_system_column_is_shown(folder: Path, format_name: str):
    rows = {"easyr1": {"problem": "<image>What is it?", "images": ["a.png"]}} | ONE_TURN
    sample = read(folder, rows[format_name] | {"system": "Be brief."}, format_name)
    assert (sample.messages[0].role, sample.messages[0].text) == ("system", "Be brief.")
    assert (
        len(read(folder, rows[format_name] | {"system": ""}, format_name).messages)
        == len(sample.messages) - 1
    )


@pytest.mark.parametrize("format_name", ["ms_swift", "trl"])
def test_one_image_by_the_name_for_one(folder: Path, format_name: str):
    assert len(read(folder, talk(ASK, SAY, image="a.png"), format_name).messages[0].images) == 1
    assert (
        len(read(folder, talk(ASK, SAY, image="a.png", images=["a.png"]), format_name).messages[0].images)
        == 1
    )
    assert "differ" in refused(folder, talk(ASK, SAY, image="a.png", images=["b.png"]), format_name)


@pytest.mark.parametrize(
    ("columns", "format_name", "reason"),
    [
        ({"image": "a.png"}, "canonical", "did you mean 'images'"),
        ({"Images": ["a.png"]}, "openai", "did you mean 'images'"),
        ({"system": "S"}, "canonical", "format: openai reads it"),
        ({"conversations": [{"from": "human", "value": "x"}]}, "trl", "format: qwen reads it"),
        ({"audios": ["a.wav"]}, "ms_swift", "'audios'"),
        ({"picture": {"bytes": b"x", "path": None}}, "openai", "'picture'"),
        ({"bild": "a.jpeg"}, "openai", "looks like a picture"),
        ({"bild": "data:image/png;base64,AA"}, "canonical", "looks like a picture"),
        ({"dialogue": [{"role": "user", "content": "x"}]}, "openai", "'dialogue'"),
        ({"vorher": [{"from": "human", "value": "x"}]}, "openai", "looks like messages"),
        ({"weight": 0.5}, "openai", "'weight'"),
        ({"max_pixels": 5000}, "ms_swift", "'max_pixels'"),
        ({"groundTruth": 7}, "canonical", "did you mean 'ground_truth'"),
        ({"fps": 2}, "canonical", "'fps'"),
        ({"enable_thinking": False}, "openai", "'enable_thinking'"),
        ({"chat_template_kwargs": {"a": 1}}, "trl", "'chat_template_kwargs'"),
        ({"lossMask": [0]}, "trl", "'lossMask'"),
        ({"system_prompt": "S"}, "ms_swift", "'system_prompt'"),
        ({"chain_of_thought": "S"}, "ms_swift", "'chain_of_thought'"),
        ({"rejected_images": ["b.png"], "rejected_response": "No."}, "ms_swift", "rejected_images"),
        ({"response": "No."}, "ms_swift", "'response'"),
        ({"completion": "No."}, "trl", "'completion'"),
    ],
)
def test_columns_that_may_be_the_dialogue_are_refused(
    folder: Path, columns: dict[str, Any], format_name: str, reason: str
):
    assert reason in refused(folder, talk(ASK, SAY, **columns), format_name)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "choices",
            "options",
            "answer",
            "solution",
            "difficulty",
            "source",
            "data_source",
            "label",
            "schema",
        ),
        *(
            "target_tool_calls",
            "reward_model",
            "extra_info",
            "question_id",
            "level",
            "subject",
            "constraints",
        ),
        *("image_id", "prompt_id", "conversation_hash", "num_turns", "video_source", "language", "ability"),
        *(
            "image_sizes",
            "start",
            "end",
            "instruction_id_list",
            "kwargs",
            "category",
            "tests",
            "image_width",
            "score_chosen",
            "metadata",
            "idx",
        ),
    ],
)
@pytest.mark.parametrize("value", ["abc", 7, ["a"], {"a": [1]}, [{"type": "a"}], True])
def test_columns_for_rewards_stay_free(name: str, value: Any):
    assert not is_suspect(name, value)


@pytest.mark.parametrize("value", [None, "", [], {}])
@pytest.mark.parametrize("format_name", ["canonical", *SPOKEN])
def test_keys_without_a_value_are_passed_over(folder: Path, format_name: str, value: Any):
    empty = dict.fromkeys(["tool_calls", "reasoning", "zzz", "resized_height"], value)
    block = {"type": "text", "text": "How far?", "image": value, "max_pixels": value}
    row = talk({"role": "user", "content": [block]} | empty, SAY | empty, image=value, system=value)
    assert len(read(folder, row, format_name).messages) == 2


@pytest.mark.parametrize("format_name", ["canonical", *SPOKEN])
@pytest.mark.parametrize(
    ("block", "reason"),
    [
        ({"type": "image", "image": "a.png", "resized_height": 56}, "model.max_pixels"),
        ({"type": "image", "image": "a.png", "max_pixels": 5000}, "messages.content.max_pixels"),
        ({"type": "image", "source": {"data": "x"}}, "'source'"),
        ({"type": "video", "video": "a.mp4", "nframes": 4}, "model.video_max_frames"),
        ({"type": "text", "text": "x", "image": "a.png"}, "'image'"),
        ({"type": "text", "text": "x", "markdown": "y"}, "'markdown'"),
    ],
)
def test_keys_of_blocks_are_read_or_refused(
    folder: Path, format_name: str, block: dict[str, Any], reason: str
):
    asked = {"role": "user", "content": [block, {"type": "text", "text": "What?"}]}
    assert reason in refused(folder, talk(asked, SAY), format_name)


KEY = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=14)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    KEY.filter(lambda key: key not in TURN_KEYS | MESSAGE_KEYS),
    st.sampled_from([0, False, "x", [1], {"a": 1}]),
    st.sampled_from(["canonical", *SPOKEN]),
)
def test_no_key_of_a_message_is_lost(folder: Path, key: str, value: Any, format_name: str):
    reason = refused(folder, talk(ASK, SAY | {key: value}), format_name)
    assert repr(key) in reason
    assert f"drop_columns: [messages.{key}]" in reason


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["image", "messages", "prompt", "systemprompt", "Response", "reasoning-trace", "img_b"]),
    st.sampled_from(["", "s", "_path", "Raw", " text", "_0"]),
    st.sampled_from(list(ONE_TURN)),
)
def test_a_refused_column_can_be_kept_or_dropped(folder: Path, stem: str, end: str, format_name: str):
    name = stem + end
    if name in ONE_TURN[format_name]:
        return
    try:
        read(folder, ONE_TURN[format_name] | {name: "x y"}, format_name)
    except DataError as error:
        if f"keep_columns: [{name}]" not in str(error):
            return  # the format reads it
    else:
        pytest.fail(f"{name} passed in silence")
    sample = read(folder, ONE_TURN[format_name] | {name: "x y"}, format_name, kept=[name])
    assert sample.columns == {name: "x y"}
    write_canonical([sample], folder / "out.jsonl")
    assert list(read_canonical(folder / "out.jsonl")) == [sample]


@pytest.mark.parametrize("container", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("format_name", ["canonical", "openai"])
def test_remedies_of_refusals_work(folder: Path, container: str, format_name: str):
    rows = [talk(ASK | {"at": "noon"}, SAY, image_link="http://x/a", number=n) for n in range(3)]
    path = stored(folder, container, rows)
    with pytest.raises(DataError, match=r"drop_columns: \[messages\.at\]"):
        load_samples(configured(path, format_name, keep_columns=["image_link"]), folder, folder / "c")
    with pytest.raises(DataError, match=r"keep_columns: \[image_link\]"):
        load_samples(configured(path, format_name, drop_columns=["messages.at"]), folder, folder / "c")
    options = {"drop_columns": ["messages.at"], "keep_columns": ["image_link"]}
    kept = load_samples(configured(path, format_name, **options), folder, folder / "c")
    assert kept[2].columns == {"image_link": "http://x/a", "number": 2}
    options = {"drop_columns": ["messages.at", "image_link"]}
    assert load_samples(configured(path, format_name, **options), folder, folder / "c")[2].columns == {
        "number": 2
    }


@pytest.mark.parametrize(
    ("rows", "format_name", "options", "dropped"),
    [
        (
            {"dialogue": [ASK | {"at": "noon", "lang": "en"}, SAY | {"mood": 1}]},
            "openai",
            {"columns": {"messages": "dialogue"}},
            ["messages.at, messages.lang", "messages.mood"],
        ),
        (
            {"data": {"turns": [ASK | {"at": "noon"}, SAY]}},
            "canonical",
            {"columns": {"messages": "data.turns"}},
            ["messages.at"],
        ),
        (
            {"input": {"messages": [ASK | {"at": 1}]}, "preferred_output": [SAY | {"b": 1}]}
            | {"non_preferred_output": [SAY | {"content": "No."}]},
            "openai",
            {},
            ["input.messages.at", "preferred_output.b"],
        ),
        (
            {"messages": [ASK], "chosen": [SAY | {"at": 1}]}
            | {"rejected": [{**SAY, "content": "No.", "b": 1}]},
            "canonical",
            {},
            ["chosen.at", "rejected.b"],
        ),
        (
            {"messages": [ASK, SAY], "reasoning": "r", "image_path": "x.png", "photo": "y.png"},
            "openai",
            {},
            ["reasoning, image_path, photo"],
        ),
    ],
)
def test_remedies_name_all_keys_where_the_row_has_them(
    folder: Path, rows: dict[str, Any], format_name: str, options: dict[str, Any], dropped: list[str]
):
    path, written = stored(folder, "jsonl", [rows]), list[str]()
    for names in dropped:
        with pytest.raises(DataError, match=re.escape(f"drop_columns: [{names}]")):
            load_samples(configured(path, format_name, drop_columns=written, **options), folder, folder / "c")
        written += names.split(", ")
    dataset = load_samples(
        configured(path, format_name, drop_columns=written, **options), folder, folder / "c"
    )
    assert [row.columns for row in dataset] == [{}]


def test_a_listed_video_is_named_where_the_row_has_it(folder: Path):
    asked = {"role": "user", "content": "<video>What?"}
    row = talk(asked, SAY, videos=[{"video": ["a.png", "b.png"], "zzz": 4}])
    assert "drop_columns: [videos.zzz]" in refused(folder, row, "canonical")


@pytest.mark.parametrize("name", ["finish_reason", "stop_reason", "is_reasoning_complete", "frames", "image"])
@pytest.mark.parametrize("value", [True, 3, [True, False], [0.5, 2]])
def test_numbers_show_nothing(name: str, value: Any):
    assert is_suspect(name, value) == (name == "image")


def test_why_a_reply_ended_is_free():
    assert not is_suspect("finish_reason", "stop")
    assert not is_suspect("stopReason", ["length"])


def test_free_names_are_no_part_of_a_dialogue():
    assert not FREE & TURN_KEYS
    assert encoded("red")
