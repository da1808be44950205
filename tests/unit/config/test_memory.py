"""The estimate of memory: widths by name and by config.json, bytes of activations, and their sums."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open

from posttrain.config import LoraConfig, ModelConfig
from posttrain.config.memory import (
    GIVEN_LOGITS,
    LearnerLoad,
    ModelLoad,
    adapters,
    engine_least,
    given_at_once,
    given_logits,
    layer_bytes,
    learner_memory,
    saved_activations,
)
from posttrain.config.shapes import KNOWN, model_shape, shape_of

GIB = 2**30
#: What transformers' config of Qwen3-VL-8B says of the sizes.
QWEN3_VL_8B = {
    "model_type": "qwen3_vl",
    "tie_word_embeddings": False,
    "text_config": {
        "hidden_size": 4096,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 12288,
        "vocab_size": 151936,
    },
    "vision_config": {
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "patch_size": 16,
        "deepstack_visual_indexes": [8, 16, 24],
    },
}


@pytest.mark.parametrize(
    ("name", "billions"),
    [  # counted by instantiating the published configs
        ("qwen3-vl-8b", 8.767),
        ("qwen3-vl-4b", 4.438),
        ("qwen3-vl-2b", 2.128),
        ("qwen2.5-vl-7b", 8.292),
        ("qwen2-vl-7b", 8.291),
    ],
)
def test_known_models_have_their_published_parameters(name: str, billions: float) -> None:
    assert KNOWN[name].parameters / 1e9 == pytest.approx(billions, rel=0.002)


def test_a_config_and_a_name_tell_the_same() -> None:
    assert shape_of(QWEN3_VL_8B) == KNOWN["qwen3-vl-8b"]


def test_counting_agrees_with_a_real_checkpoint(tiny_checkpoint: Path) -> None:
    with safe_open(tiny_checkpoint / "model.safetensors", "pt") as weights:
        real = sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118
    shape = model_shape(ModelConfig(name_or_path=str(tiny_checkpoint)))
    assert shape is not None
    assert shape.parameters == pytest.approx(real, rel=0.01)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Qwen/Qwen3-VL-30B-A3B-Thinking", 31.1),
        ("Qwen/Qwen2.5-VL-7B-Instruct", 8.3),
        ("Qwen/Qwen3-VL-99B", None),
    ],
)
def test_sizes_by_name(name: str, billions: float | None) -> None:
    shape = model_shape(ModelConfig(name_or_path=name))
    assert (round(shape.parameters / 1e9, 1) if shape else None) == billions


def test_a_config_without_widths_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_vl", "text_config": {}}))
    assert shape_of(json.loads((tmp_path / "config.json").read_text())) is None


@pytest.mark.parametrize(
    ("name", "kibibytes", "with_mask"),
    [  # measured on one layer of each, by what autograd saves; with a mask per token of the whole model
        ("qwen3-vl-8b", 210, 7.83),
        ("qwen3-vl-4b", 166, 6.29),
        ("qwen3-vl-2b", 110, 3.14),
        ("qwen2.5-vl-7b", 220, 6.36),
    ],
)
def test_bytes_of_a_token_agree_with_measured_layers(name: str, kibibytes: int, with_mask: float) -> None:
    shape = KNOWN[name]
    assert layer_bytes(shape, 2, padded=False) / 1024 == pytest.approx(kibibytes, rel=0.005)
    masked = shape.layers * layer_bytes(shape, 2, padded=True) / 2**20
    assert masked == pytest.approx(with_mask, rel=0.01)


def test_checkpointing_keeps_the_inputs_of_layers_and_offloading_not_even_these() -> None:
    model = ModelLoad(KNOWN["qwen3-vl-8b"], 2)
    kept = [
        saved_activations(model, LearnerLoad(1024, checkpointing=c, offloading=o, sees_images=False))
        for c, o in ((False, False), (True, False), (True, True))
    ]
    assert kept[0] / 2**30 == pytest.approx(7.39 + 0.04, rel=0.01)
    assert (kept[1] - kept[2]) / 2**30 == pytest.approx(0.281, rel=0.01)


def test_masters_moments_and_gradients_are_shared_and_the_tower_is_not() -> None:
    model = ModelLoad(KNOWN["qwen3-vl-8b"], 2)
    assert model.trained / 1e9 == pytest.approx(8.351, rel=0.002)
    for shards in (1, 8):
        certain = learner_memory(model, LearnerLoad(1024, shards=shards)).certain
        assert sum(certain.values()) - certain["fixed weights"] == 16 * model.trained / shards
        assert certain["fixed weights"] / 1e9 == pytest.approx(2 * 0.414, rel=0.01)
    with_reference = learner_memory(model, LearnerLoad(1024, shards=8, reference=True)).certain
    reference = with_reference["fixed weights"] - certain["fixed weights"]
    assert reference / 1e9 == pytest.approx(17.53 / 8, rel=0.01)


def test_adapters_are_small_and_leave_the_model_in_its_own_type() -> None:
    model = ModelLoad(KNOWN["qwen3-vl-8b"], 2)
    certain = learner_memory(model, LearnerLoad(1024, lora=LoraConfig(rank=16))).certain
    assert adapters(model.shape, 16) / 1e6 == pytest.approx(43.6, rel=0.01)
    assert certain["fixed weights"] / 1e9 == pytest.approx(17.53, rel=0.01)
    assert certain["weights"] == 4 * adapters(model.shape, 16)
    quantized = learner_memory(model, LearnerLoad(1024, lora=LoraConfig(quantization="nf4"))).certain
    assert quantized["fixed weights"] < 0.5 * certain["fixed weights"]


def test_what_each_setting_saves_is_told() -> None:
    """Every one of these lowers the peak of a long row of Qwen3-VL-8B on eight processes."""
    model = ModelLoad(KNOWN["qwen3-vl-8b"], 2)
    load = LearnerLoad(32768, accumulates=True)
    peaks = [learner_memory(model, load).peak]
    settings = {"checkpointing": True, "shards": 8, "offloading": True, "sees_images": False, "tokens": 16384}
    for setting in settings.items():
        load = replace(load, **dict([setting]))
        peaks.append(learner_memory(model, load).peak)
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == len(peaks)


def test_an_engine_holds_its_weights_and_the_cache_of_an_episode() -> None:
    model = ModelLoad(KNOWN["qwen3-vl-8b"], 2)
    a_token = engine_least(model, 1001) - engine_least(model, 1000)
    assert a_token == 144 * 1024
    assert engine_least(model, 1) / 1e9 == pytest.approx(17.53 + 3.2, rel=0.01)


def test_logits_of_given_tokens_keep_within_their_room() -> None:
    large = KNOWN["qwen3-vl-8b"]
    assert given_at_once(large.vocabulary) == 415  # of 17 bytes × 151,936
    assert 0.99 < given_logits(large, 8192) / GIVEN_LOGITS <= 1
    assert given_logits(large, 100) == 100 * 17 * 151_936
    small = replace(large, vocabulary=384)
    assert given_logits(small, 8192) == 8192 * 17 * 384
