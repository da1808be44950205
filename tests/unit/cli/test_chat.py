"""Chatting with the tiny real model, against transformers' own generate."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText

from posttrain.cli import main as cli
from posttrain.cli.chat import HELP, Chat, ChatError, converse
from posttrain.rendering.collation import collate
from posttrain.rendering.rendering import Renderer
from posttrain.types import Block, ImageRef, Message


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    path = tmp_path / "scene.png"
    Image.linear_gradient("L").convert("RGB").save(path)
    return path


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def chat(tiny_checkpoint: Path, said: list[str]) -> Chat:
    return Chat(tiny_checkpoint, said.append, max_new_tokens=6)


def test_the_answer_is_what_transformers_generates_and_is_streamed(chat, said, scene, tiny_checkpoint):
    answer = chat.ask("Which letter?", scene)
    assert "".join(said) == answer + "\n"
    assert len(said) > 1
    renderer = Renderer.from_pretrained(tiny_checkpoint, "qwen3_vl")
    blocks = (Block("image", image=ImageRef(str(scene))), Block("text", text="Which letter?"))
    prompt = renderer.render([Message("user", blocks)], add_generation_prompt=True)
    model: Any = AutoModelForImageTextToText.from_pretrained(tiny_checkpoint)
    made = model.generate(**collate([prompt], renderer), max_new_tokens=6, do_sample=False)
    assert answer == renderer.decode(made[0, len(prompt.token_ids) :].tolist())


def test_a_dialogue_goes_on_until_it_begins_anew(chat, said, scene):
    converse(chat, ["Which letter?\n", "\n", "And now?\n"], said.append, scene)
    assert [message.role for message in chat.messages] == ["user", "assistant"] * 2
    assert [len(message.images) for message in chat.messages] == [1, 0, 0, 0]
    converse(chat, ["/new", f"/image {scene}", "Again?", "/quit", "never asked"], said.append)
    assert [message.text for message in chat.messages[::2]] == ["Again?"]
    assert chat.messages[0].images


def test_a_question_that_cannot_be_asked_leaves_the_dialogue_as_it_was(chat, said):
    converse(chat, ["/image nowhere.png", "What?", "/help"], said.append)
    assert chat.messages == []
    assert said == ["there is no image nowhere.png\n", f"{HELP}\n"]


def test_a_checkpoint_of_no_family_is_refused(tmp_path, said):
    with pytest.raises(ChatError, match="which Qwen-VL it is"):
        Chat(tmp_path, said.append)


def test_the_command_line_asks_once_and_exports(tiny_checkpoint, scene, tmp_path, capsys):
    arguments = ["--image", str(scene), "--prompt", "Which?", "--max-new-tokens", "3"]
    assert cli.main(["chat", str(tiny_checkpoint), *arguments]) == 0
    assert capsys.readouterr().out.endswith("\n")
    assert cli.main(["export", str(tiny_checkpoint), "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "README.md").is_file()
    assert cli.main(["export", str(tiny_checkpoint), "--output", str(tmp_path / "out")]) == 2
    assert "is not empty" in capsys.readouterr().err
