"""Kernels that only some machines have: used where they are asked for, or refused with the reason."""

import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.integrations.liger as integration
from transformers import PreTrainedModel

from posttrain.config import ModelConfig
from posttrain.models import kernels
from posttrain.models.load import LoadError, load_model
from posttrain.quickstart.tiny import TinyType, build_tiny
from posttrain.training.core.policy import load_policy
from tests.unit.models.reference_flash import Flash

#: The switches of Liger's own functions, with the values that they have unless told otherwise.
LIGERS = {
    "rope": True,
    "rms_norm": True,
    "swiglu": True,
    "cross_entropy": False,
    "fused_linear_cross_entropy": True,
}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say which packages this machine has, and whether it has a GPU."""

    def has(*packages: str, gpu: bool) -> None:
        found = importlib.util.find_spec
        optional = ("flash_attn", "flash_attn_interface", "liger_kernel")

        def find_spec(name: str, package: str | None = None) -> object:
            return object() if name in packages else None if name in optional else found(name, package)

        monkeypatch.setattr(importlib.util, "find_spec", find_spec)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)

    return has


@pytest.mark.parametrize(
    ("keys", "packages", "gpu", "reason"),
    [
        (
            {"attn_implementation": "flash_attention_2"},
            [],
            True,
            "model.attn_implementation: flash_attention_2 needs flash_attn, which is not installed: pip"
            " install --no-build-isolation 'posttrain[flash-attention]', or remove the key",
        ),
        (
            {"attn_implementation": "flash_attention_3"},
            ["flash_attn"],
            True,
            "flash_attention_3 needs flash_attn_interface, which is not installed: build it from the folder",
        ),
        (
            {"attn_implementation": "flash_attention_2"},
            ["flash_attn"],
            False,
            "flash_attention_2 runs on GPUs, and this process has none: remove the key",
        ),
        (
            {"attn_implementation": "flash_attention_2", "dtype": "float32"},
            ["flash_attn"],
            True,
            "flash_attention_2 has no float32: set model.dtype: bfloat16",
        ),
        (
            {"fused_layers": "liger"},
            [],
            True,
            "model.fused_layers: liger needs liger_kernel, which is not installed: pip install"
            " 'posttrain[liger]', or remove the key",
        ),
        ({"fused_layers": "liger"}, ["liger_kernel"], False, "liger runs on GPUs, and this process has none"),
    ],
)
def test_what_is_missing_is_named(
    machine: Callable[..., None],
    tiny_checkpoint: Path,
    keys: dict[str, Any],
    packages: list[str],
    gpu: bool,
    reason: str,
) -> None:
    machine(*packages, gpu=gpu)
    with pytest.raises(LoadError) as caught:
        load_model(tiny_checkpoint, **keys)
    assert reason in str(caught.value)


def test_a_package_that_transformers_refuses_is_told_with_its_reason(
    machine: Callable[..., None], tiny_checkpoint: Path
) -> None:
    machine("flash_attn", gpu=True)  # such as version 4, which has the same name
    with pytest.raises(LoadError, match="attn_implementation: flash_attention_2: FlashAttention2 has"):
        load_model(tiny_checkpoint, attn_implementation="flash_attention_2")


@pytest.mark.parametrize(
    "keys", [{"attn_implementation": "flash_attention_2"}, {"fused_layers": "liger"}], ids=str
)
def test_the_runs_settings_reach_the_model(
    machine: Callable[..., None], tiny_checkpoint: Path, keys: dict[str, Any]
) -> None:
    machine(gpu=True)
    with pytest.raises(LoadError, match="is not installed"):
        load_policy(ModelConfig(family="qwen3_vl", **keys), tiny_checkpoint)


def test_flash_attention_is_what_a_model_gets(
    machine: Callable[..., None], flash: Flash, tiny_checkpoint: Path
) -> None:
    machine("flash_attn", gpu=True)
    model = load_model(tiny_checkpoint, attn_implementation="flash_attention_2")
    chosen = {
        config._attn_implementation for config in (model.config.text_config, model.config.vision_config)
    }
    assert chosen == {"flash_attention_2"}
    with torch.no_grad():
        model(input_ids=torch.arange(6)[None])
    assert flash.whole == model.config.text_config.num_hidden_layers


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch, machine: Callable[..., None]) -> list[dict[str, Any]]:
    """A machine with a GPU and a Liger that covers two architectures; what its function was called with."""
    machine("liger_kernel", gpu=True)
    calls: list[dict[str, Any]] = []

    class LigerSwiGLUMLP(torch.nn.Module):
        def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
            return self.down_proj(torch.nn.functional.silu(self.gate_proj(x)) * self.up_proj(x)) + 1

    def apply(model: PreTrainedModel, **switches: bool) -> None:
        calls.append({"model": model, **LIGERS, **switches})

    covered = dict.fromkeys(("qwen3_vl", "qwen2_5_vl", "qwen3_vl_moe"), apply)
    registry = types.SimpleNamespace(MODEL_TYPE_TO_APPLY_LIGER_FN=covered)
    package = types.SimpleNamespace(_apply_liger_kernel_to_instance=apply, LigerSwiGLUMLP=LigerSwiGLUMLP)
    modules = {
        "liger_kernel": types.SimpleNamespace(transformers=package),
        "liger_kernel.transformers": package,
        "liger_kernel.transformers.monkey_patch": registry,
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(integration, "is_liger_kernel_available", lambda: True)
    return calls


@pytest.mark.parametrize(
    ("model_type", "swiglu"), [("qwen3_vl", True), ("qwen2_5_vl", True), ("qwen3_vl_moe", False)]
)
def test_liger_is_given_our_switches(
    liger: list[dict[str, Any]], tmp_path: Path, model_type: TinyType, swiglu: bool
) -> None:
    build_tiny(model_type, tmp_path)
    model = load_model(tmp_path, fused_layers="liger")
    (call,) = liger
    assert call.pop("model") is model
    assert call == LIGERS | {"swiglu": swiglu, "fused_linear_cross_entropy": False}


def test_qwen3_vls_units_are_fused_as_well(liger: list[dict[str, Any]], tiny_checkpoint: Path) -> None:
    fused: Any = load_model(tiny_checkpoint, fused_layers="liger")
    plain: Any = load_model(tiny_checkpoint)
    x = torch.ones(1, 2, 128, dtype=torch.bfloat16)
    layers = zip(fused.model.language_model.layers, plain.model.language_model.layers, strict=True)
    for ours, theirs in layers:
        torch.testing.assert_close(ours.mlp(x), theirs.mlp(x) + 1)


def test_an_architecture_that_liger_does_not_cover_is_refused(
    liger: list[dict[str, Any]], tmp_path: Path
) -> None:
    build_tiny("qwen2_vl", tmp_path)
    with pytest.raises(LoadError, match="liger has no kernels for qwen2_vl models: remove the key"):
        load_model(tmp_path, fused_layers="liger")
    assert not liger


def test_by_default_nothing_is_asked_of_the_machine(machine: Callable[..., None]) -> None:
    machine(gpu=False)
    assert kernels.refusal("sdpa", "none", "float32", "qwen3_vl") is None
