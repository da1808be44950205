"""The shipped templates write what the published ones write (TRL carries copies of them)."""

import random
from pathlib import Path
from typing import Any

import pytest
import trl
from transformers.utils.chat_template_utils import render_jinja_template

from posttrain.rendering.chat_templates import chat_template

PUBLISHED = {
    name: (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
    for name in ("qwen2_5", "qwen2_5_vl", "qwen3_vl")
}
#: The tools of the Qwen2.5 text models, with the vision models' default system text.
HERMES = PUBLISHED["qwen2_5"].replace("You are Qwen, created by Alibaba Cloud. You are", "You are")
TOOL = {
    "type": "function",
    "function": {"name": "zoom", "description": "é <b> 'q' \"x\"", "parameters": {"type": "object"}},
}


def random_content(rng: random.Random) -> Any:
    if rng.random() < 0.3:
        return rng.choice(["hi", "", "  spaces \n", "é<x>&'"])
    blocks = [
        {"type": "text", "text": "a\n"},
        {"type": "text", "text": "{{x}} "},
        {"type": "image", "image": "scene.png"},
        {"type": "video", "video": "clip.mp4"},
    ]
    return rng.choices(blocks, k=rng.randint(0, 3))


def random_dialogue(rng: random.Random) -> list[dict[str, Any]]:
    roles = ["system"] * (rng.random() < 0.5)
    roles += rng.choices(["user", "assistant", "tool", "tool"], k=rng.randint(1, 6))
    messages = [{"role": role, "content": random_content(rng)} for role in roles]
    calls = [{"function": {"name": "f", "arguments": {"a": [1, "é"]}}}, {"name": "g", "arguments": "{}"}]
    for message in messages:
        if message["role"] == "assistant":
            message["tool_calls"] = rng.choices(calls, k=rng.randint(0, 2))
    return messages


def assert_same(dialogues: list[Any], ours: str, theirs: str, **options: Any) -> None:
    for ask in (False, True):
        found, _ = render_jinja_template(dialogues, chat_template=ours, add_generation_prompt=ask, **options)
        expected, _ = render_jinja_template(
            dialogues, chat_template=theirs, add_generation_prompt=ask, **options
        )
        assert found == expected


@pytest.mark.parametrize("tools", [None, [TOOL], [TOOL, TOOL]])
@pytest.mark.parametrize("add_vision_id", [False, True])
def test_qwen3_vl_writes_as_published(tools, add_vision_id):
    rng = random.Random(0)
    dialogues = [random_dialogue(rng) for _ in range(300)]
    options = {"tools": tools, "add_vision_id": add_vision_id}
    assert_same(dialogues, chat_template("qwen3_vl"), PUBLISHED["qwen3_vl"], **options)


@pytest.mark.parametrize("add_vision_id", [False, True])
def test_qwen2_vl_writes_as_published_where_there_are_no_tools(add_vision_id):
    rng = random.Random(0)
    dialogues = [
        [message | {"tool_calls": []} for message in random_dialogue(rng) if message["role"] != "tool"]
        for _ in range(600)
    ]
    dialogues = [dialogue for dialogue in dialogues if dialogue]
    assert len(dialogues) > 300
    assert chat_template("qwen2_vl") == chat_template("qwen2_5_vl")
    assert_same(dialogues, chat_template("qwen2_vl"), PUBLISHED["qwen2_5_vl"], add_vision_id=add_vision_id)


@pytest.mark.parametrize("tools", [None, [TOOL], [TOOL, TOOL]])
def test_qwen2_vl_writes_tools_as_the_text_models_do(tools):
    rng = random.Random(0)
    dialogues = [random_dialogue(rng) for _ in range(600)]
    # The text models take strings, and calls with parsed arguments.
    for message in (message for dialogue in dialogues for message in dialogue):
        message["content"] = message["content"] if isinstance(message["content"], str) else "text"
        message["tool_calls"] = [call for call in message.get("tool_calls", []) if "function" in call]
    dialogues = [dialogue for dialogue in dialogues if dialogue[0]["role"] != "tool"]
    assert len(dialogues) > 300
    assert_same(dialogues, chat_template("qwen2_vl"), HERMES, tools=tools)


def test_a_thinking_prompt_opens_the_thinking():
    question = [{"role": "user", "content": "hi"}]
    for ask, end in ((True, "<|im_start|>assistant\n<think>\n"), (False, "hi<|im_end|>\n")):
        (found,), _ = render_jinja_template(
            [question], chat_template=chat_template("qwen3_vl_thinking"), add_generation_prompt=ask
        )
        assert found.endswith(end)
