"""Limits of pictures that were meant as tokens, or contradict the checkpoint's own, are told."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.config import Document, RunConfig
from posttrain.first_party import PLUGINS
from posttrain.preflight.findings import Examination
from posttrain.preflight.pixels import FEW_TOKENS, examine_pixels

HUB = {"qwen2_vl": "Qwen/Qwen2-VL-2B-Instruct", "qwen3_vl": "Qwen/Qwen3-VL-2B-Instruct"}


def notes(name: str, **model: Any) -> list[str]:
    stage = {"stage": "sft", "data": {"mixture": {"rows": 1.0}}, "max_steps": 1}
    about = {"name": "mine", "model": {"name_or_path": name} | model, "stages": [stage]}
    look = Examination(RunConfig.model_validate(about), Document(about, "mine.yaml"), PLUGINS)
    examine_pixels(look)
    assert not look.findings.problems
    return look.findings.notes


@pytest.mark.parametrize(
    ("family", "key", "value", "told"),
    [
        (
            "qwen2_vl",
            "max_pixels",
            1280,
            "1 token(s) of a picture at most: it is in pixels, and a token takes 28*28;"
            " 1280 tokens are 1003520 pixels",
        ),
        ("qwen3_vl", "max_pixels", 1280, "1280 tokens are 1310720 pixels"),
        ("qwen3_vl", "max_pixels", 16384, "leaves 16 token(s) of a picture"),
        ("qwen2_vl", "max_pixels", 256, "256 tokens are 200704 pixels"),
        ("qwen2_vl", "video_max_pixels", 768, "1 token(s) of a video's frame"),
        ("qwen2_vl", "min_pixels", 256, "min_pixels = 256 is less than one token"),
        ("qwen3_vl", "video_max_tokens", 25_165_824, "so many pixels are 24576 tokens, each of 32*32"),
    ],
)
def test_tokens_where_pixels_are_meant(family: str, key: str, value: int, told: str) -> None:
    [note] = notes(HUB[family], **{key: value})
    assert f"model.{key} = {value} " in note
    assert told in note


@given(st.integers(1, 1 << 24), st.sampled_from(sorted(HUB)))
def test_a_note_comes_with_few_tokens_alone(limit: int, family: str) -> None:
    side = 32 if family == "qwen3_vl" else 28
    assert bool(notes(HUB[family], max_pixels=limit)) == (limit < FEW_TOKENS * side**2)


@pytest.mark.parametrize(
    ("settings", "limits", "key"),
    [
        ({"size": {"shortest_edge": 65_536, "longest_edge": 1 << 24}}, {"max_pixels": 50_000}, "max_pixels"),
        ({"min_pixels": 65_536, "max_pixels": 1 << 24}, {"max_pixels": 50_000}, "max_pixels"),
        (
            {"size": {"shortest_edge": 3136, "longest_edge": 1_003_520}},
            {"min_pixels": 2_000_000},
            "min_pixels",
        ),
        ({"size": {"shortest_edge": 3136, "longest_edge": 1_003_520}}, {"max_pixels": 500_000}, ""),
        ({"size": {"shortest_edge": "?"}, "patch_size": None}, {"max_pixels": 500_000}, ""),
        ([], {"min_pixels": 500_000}, ""),
    ],
)
def test_a_limit_on_the_wrong_side_of_the_checkpoints_own(
    tmp_path: Path, settings: Any, limits: dict[str, int], key: str
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_vl"}')
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    found = notes(str(tmp_path), **limits)
    assert [note for note in found if f"model.{key} contradicts" in note] == found
    assert bool(found) == bool(key)


def test_the_checkpoint_tells_how_large_a_token_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_vl"}')
    own = {"image_processor": {"patch_size": 8, "merge_size": 2}}
    (tmp_path / "processor_config.json").write_text(json.dumps(own))
    assert "a token takes 16*16" in notes(str(tmp_path), max_pixels=1280)[0]


def test_a_text_model_has_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    assert notes(str(tmp_path)) == []
