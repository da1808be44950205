"""Chatting with the tiny real model, against transformers' own generate."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from posttrain.cli import main as cli
from posttrain.cli.chat import HELP, Chat, ChatError, converse
from posttrain.first_party import PLUGINS
from posttrain.joints import Environment
from posttrain.quickstart.tiny import build_tiny
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


def test_an_image_that_is_not_there_is_refused_before_the_model_is_loaded(scene, tmp_path, capsys):
    assert cli.main(["chat", str(tmp_path / "no-checkpoint"), "--image", str(tmp_path / "scen.png")]) == 2
    assert "scen.png; did you mean scene.png?" in capsys.readouterr().err


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


def test_calls_are_run_and_their_images_shown_to_the_model(
    tiny_checkpoint, said, scene, tmp_path, monkeypatch
):
    """The turns are written for the untrained model; prompts, tools and images are real."""
    tools = PLUGINS.load_tools([{"name": "image_zoom_in"}])

    def new_environment() -> Environment:
        return PLUGINS.make_environment(tools, 3, tmp_path / "crops")

    chat = Chat(tiny_checkpoint, said.append, 64, 0.0, tools, new_environment)
    box = '{"bbox_2d": [0, 0, 500, 500], "label": "corner", "img_idx": 0}'
    turns = iter(
        [
            f'<tool_call>\n{{"name": "image_zoom_in_tool", "arguments": {box}}}\n</tool_call>',
            '<tool_call>\n{"name": "no_such_tool", "arguments": {}}\n</tool_call>',
            "It is K.",
        ]
    )
    prompts: list[str] = []
    tokenizer = Renderer.from_pretrained(tiny_checkpoint, "qwen3_vl").tokenizer

    def generate(input_ids: torch.Tensor, **_: object) -> torch.Tensor:
        prompts.append(tokenizer.decode(input_ids[0].tolist()))
        [ids] = tokenizer([next(turns)], add_special_tokens=False)["input_ids"]
        return torch.cat([input_ids, torch.tensor([ids])], 1)

    monkeypatch.setattr(chat._model, "generate", generate)
    assert chat.ask("Which letter?", scene) == "It is K."
    roles = [message.role for message in chat.messages]
    assert roles == ["user", "assistant", "tool", "assistant", "tool", "assistant"]
    [crop] = chat.messages[2].images
    with Image.open(crop.path) as shown, Image.open(scene) as whole:
        assert (shown.width / shown.height) == pytest.approx(whole.width / whole.height, rel=0.1)
    assert all('"name": "image_zoom_in_tool"' in prompt for prompt in prompts)
    assert [prompt.count("<|vision_start|>") for prompt in prompts] == [1, 2, 2]
    told = "".join(said)
    assert f"  → image_zoom_in_tool {box}\n  ← {crop.path}\n" in told
    assert "→ no_such_tool {}: Error: there is no tool 'no_such_tool'" in told
    assert "the tools are: image_zoom_in_tool" in told


def test_the_command_line_offers_tools_and_refuses_unknown_ones(tiny_checkpoint, scene, capsys):
    arguments = ["chat", str(tiny_checkpoint), "--image", str(scene), "--prompt", "Which?"]
    assert cli.main([*arguments, "--max-new-tokens", "3", "--tools", "image_zoom_in"]) == 0
    assert cli.main([*arguments, "--tools", "image_zoom"]) == 2
    assert "image_zoom_in" in capsys.readouterr().err


def test_the_command_line_asks_once_and_exports(tiny_checkpoint, scene, tmp_path, capsys):
    arguments = ["--image", str(scene), "--prompt", "Which?", "--max-new-tokens", "3"]
    assert cli.main(["chat", str(tiny_checkpoint), *arguments]) == 0
    assert capsys.readouterr().out.endswith("\n")
    assert cli.main(["export", str(tiny_checkpoint), "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "README.md").is_file()
    assert cli.main(["export", str(tiny_checkpoint), "--output", str(tmp_path / "out")]) == 2
    assert "is not an empty directory" in capsys.readouterr().err


def test_a_model_whose_results_stand_in_its_turn_stops_for_them(said, tmp_path, monkeypatch):
    """Transformers stops at the mark; what follows a result is the same turn."""
    build_tiny("qwen2_vl", tmp_path / "older")
    tools = PLUGINS.load_tools([{"name": "image_flip"}])
    chat = Chat(
        tmp_path / "older", said.append, 4, 0.0, tools, lambda: PLUGINS.make_environment(tools, 3, tmp_path)
    )
    chat.ask("hi")  # by the untrained model, whose words say nothing
    asked: list[list[str]] = []
    turns = iter(["*FUNCTION*: paint\n*ARGS*: {}\n*RESULT*", ": It is K."])

    def scripted(input_ids: torch.Tensor, **how: Any) -> torch.Tensor:
        asked.append(how["stop_strings"])
        [ids] = how["tokenizer"]([next(turns)], add_special_tokens=False)["input_ids"]
        return torch.cat([input_ids, torch.tensor([ids])], 1)

    monkeypatch.setattr(chat._model, "generate", scripted)
    assert (chat.ask("Which letter?"), asked) == ("It is K.", [["*RESULT*"]] * 2)
