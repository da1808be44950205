"""The shipped template writes what the published checkpoints' template writes (TRL carries a copy of it)."""

import random
from pathlib import Path
from typing import Any

import pytest
import trl
from transformers.utils.chat_template_utils import render_jinja_template

from posttrain.models.tiny import chat_template

PUBLISHED = (Path(trl.__file__).parent / "chat_templates" / "qwen3_vl.jinja").read_text(encoding="utf-8")
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


@pytest.mark.parametrize("tools", [None, [TOOL], [TOOL, TOOL]])
@pytest.mark.parametrize("add_vision_id", [False, True])
def test_renders_as_the_published_template(tools, add_vision_id):
    rng = random.Random(0)
    dialogues = [random_dialogue(rng) for _ in range(300)]
    for ask in (False, True):
        options = {"tools": tools, "add_generation_prompt": ask, "add_vision_id": add_vision_id}
        ours, _ = render_jinja_template(dialogues, chat_template=chat_template("qwen3_vl"), **options)
        theirs, _ = render_jinja_template(dialogues, chat_template=PUBLISHED, **options)
        assert ours == theirs
