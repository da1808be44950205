"""Targets of adapters are compared with the model before anything starts, by its files alone."""

import re
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.lora_targets import Part, reaches_vision
from posttrain.models.load import load_model
from posttrain.models.lora import linear_layers
from posttrain.preflight.adapters import linear_weights
from posttrain.quickstart.tiny import build_tiny


def sft(targets: Any) -> dict[str, Any]:
    data = {"mixture": {"dialogues": 1.0}}
    return {"stage": "sft", "data": data, "max_steps": 1, "lora": {"target_modules": targets}}


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_files_name_the_layers_that_the_model_has(family: Any, tmp_path: Path) -> None:
    build_tiny(family, tmp_path, seed=0)
    layers = linear_layers(load_model(tmp_path, dtype="float32"))
    assert set(linear_weights(tmp_path, sees_images=True)) - {"lm_head"} == set(layers) - {"lm_head"}


@pytest.mark.parametrize(
    ("targets", "reason"),
    [
        ("all", "write all-linear"),
        ("ALL_LINEAR", "write all-linear"),
        ("*", "write all-linear"),
        ("q_proj", r"write a list of names, \[q_proj\]"),
        ("q_proj,v_proj", r"write a list of names, \[q_proj, v_proj\]"),
        ("q_proj, v_proj", r"write a list of names, \[q_proj, v_proj\]"),
        ("dummy-target-modules", "the whole name of no layer"),
        (["q_porj"], r"did you mean q_proj\?"),
        (["qkv", "fc1"], "no linear layer 'qkv'"),
        (["all"], "no linear layer 'all'"),
    ],
)
@pytest.mark.parametrize("here", [True, False])
def test_a_target_that_leads_nowhere_is_found_before_the_start(
    look: Any, tiny_checkpoint: Path, targets: Any, reason: str, here: bool
) -> None:
    model = {"name_or_path": str(tiny_checkpoint) if here else "Qwen/Qwen3-VL-2B-Instruct"}
    (problem,) = look(sft(targets), model=model).problems
    assert problem.key == "stages[0].lora.target_modules"
    assert re.search(reason, f"{problem.reason}; {problem.remedy}")


@pytest.mark.parametrize(
    ("targets", "reason"),
    [
        (r".*\.(qkv|proj)", "model.freeze_vision_tower keeps fixed"),
        (r".*merger.*", None),
        (r".*layers\..*\.qproj", "finds no linear layer"),
        (r".*layers\..*\.q_proj", None),
        (r".*", "finds the head"),
        ("all-linear", None),
        (["q_proj", "down_proj"], None),
    ],
)
def test_expressions_are_tried_on_the_names_in_the_files(
    look: Any, tiny_checkpoint: Path, targets: Any, reason: str | None
) -> None:
    found = look(sft(targets), model={"name_or_path": str(tiny_checkpoint)}).problems
    assert [problem.key for problem in found] == ["stages[0].lora.target_modules"] * (reason is not None)
    assert reason is None or reason in found[0].reason
    thawed = {"freeze_vision_tower": False, "name_or_path": str(tiny_checkpoint)}
    assert "keeps fixed" not in str(look(sft(targets), model=thawed).problems)


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 8, b"\x02" + bytes(7) + b"[]", b"\x0a" + bytes(7) + b'{"a": "b"}']
)
def test_files_that_cannot_be_read_name_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    assert linear_weights(tmp_path, sees_images=True) == []


@pytest.mark.parametrize(
    ("targets", "frozen", "here", "reaches"),
    [
        (r".*\.(qkv|q_proj)", set(), True, True),
        (r".*\.(qkv|q_proj)", {"merger"}, True, True),
        (r".*\.(qkv|q_proj)", {"vision tower"}, True, False),
        (r".*merger.*", {"vision tower"}, True, True),
        (r".*language_model.*", set(), True, False),
        (r".*language_model.*", {"vision tower"}, False, True),  # its names are not known
        (r".*\.(qkv|q_proj)", {"vision tower", "merger"}, False, False),
        ("all-linear", set(), False, False),
        (["q_proj"], set(), False, False),
        (None, set(), True, False),
    ],
)
def test_only_expressions_reach_the_vision_side(
    tiny_checkpoint: Path, targets: Any, frozen: set[Part], here: bool, reaches: bool
) -> None:
    linear = linear_weights(tiny_checkpoint, sees_images=True) if here else []
    assert reaches_vision(linear, targets, frozen) == reaches
