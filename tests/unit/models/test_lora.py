"""Adapters: where they go, what their checkpoints hold, and that merging changes no answer."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from posttrain.config import LoraConfig
from posttrain.config.lora_targets import part_of
from posttrain.config.model import infer_family
from posttrain.media.images import save_image
from posttrain.models.export import export
from posttrain.models.load import load_model
from posttrain.models.lora import (
    LoraError,
    adapted_layers,
    adapters_off,
    base_of,
    is_adapter,
    linear_layers,
    load_merged,
    with_lora,
    write_merged,
)
from posttrain.models.model_card import ExportError
from posttrain.quickstart.tiny import build_tiny
from posttrain.rendering.collation import collate
from posttrain.rendering.rendering import Renderer
from posttrain.run.record import AdaptersRecord
from posttrain.types import Block, Message, text_message


@pytest.fixture(scope="module")
def batch(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    renderer = Renderer.from_pretrained(tiny_checkpoint, "qwen3_vl")
    ref = save_image(Image.linear_gradient("L").convert("RGB"), tmp_path_factory.mktemp("images"))
    asked = Message("user", (Block("image", image=ref), Block("text", text="Which letter?")))
    return collate([renderer.render([asked, text_message("assistant", "K K")])], renderer)


def logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batch).logits


@pytest.fixture(scope="module")
def adapted(tiny_checkpoint: Path) -> PeftModel:
    """Make a model whose adapters differ from their initial values."""
    model = with_lora(load_model(tiny_checkpoint, dtype="float32"), LoraConfig(rank=4, alpha=8), seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05)
    return model


@pytest.fixture(scope="module")
def adapter(adapted: PeftModel, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a checkpoint as a stage with LoRA writes it."""
    directory = tmp_path_factory.mktemp("adapter") / "checkpoint-3"
    adapted.save_pretrained(str(directory))
    AutoProcessor.from_pretrained(tiny_checkpoint).save_pretrained(directory)
    return directory


def test_fresh_adapters_change_nothing_and_train_alone(tiny_checkpoint, batch):
    plain = load_model(tiny_checkpoint, dtype="float32")
    model = with_lora(load_model(tiny_checkpoint, dtype="float32"), LoraConfig(rank=4), seed=0)
    assert torch.equal(logits(plain, batch), logits(model, batch))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    layers = {name.partition(".lora_")[0].rpartition(".")[2] for name in trained}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert all(".language_model.layers." in name for name in trained)


def test_adapters_that_are_off_change_nothing_and_stay_trained(tiny_checkpoint, adapted, batch):
    plain = load_model(tiny_checkpoint, dtype="float32")
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    with adapters_off(adapted):
        assert torch.equal(logits(plain, batch), logits(adapted, batch))
        assert [name for name, p in adapted.named_parameters() if p.requires_grad] == trained
    assert not torch.equal(logits(plain, batch), logits(adapted, batch))
    assert [name for name, p in adapted.named_parameters() if p.requires_grad] == trained


def test_the_same_seed_gives_the_same_adapters(tiny_checkpoint):
    states = [
        with_lora(load_model(tiny_checkpoint, dtype="float32"), LoraConfig(rank=4), seed=seed).state_dict()
        for seed in (5, 5, 6)
    ]
    name = next(name for name in states[0] if "lora_A" in name)
    assert torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[0][name], states[2][name])


QWEN = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint of each family."""
    folder = tmp_path_factory.mktemp("families")
    for family in FAMILIES:
        build_tiny(family, folder / family, seed=0)
    return {family: folder / family for family in FAMILIES}


def adapted_parts(model: PeftModel) -> dict[str, set[str]]:
    """The kinds of layers with adapters, by the part of the model that they are in."""
    found: dict[str, set[str]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert ".lora_" in name
            layer = name.partition(".lora_")[0]
            found.setdefault(part_of(layer), set()).add(layer.rpartition(".")[2])
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize(
    ("targets", "kinds"),
    [
        (None, QWEN),
        ("all-linear", QWEN),
        ("All-Linear", QWEN),
        (["all-linear"], QWEN),
        (["q_proj"], {"q_proj"}),
        (["self_attn.q_proj", "mlp.up_proj"], {"q_proj", "up_proj"}),
        (["gate_proj", "up_proj", "down_proj"], {"gate_proj", "up_proj", "down_proj"}),
        (["layers.0.mlp.down_proj"], {"down_proj"}),
        (r".*language_model.*\.(q|v)_proj", {"q_proj", "v_proj"}),
        (r"(?!.*visual)(?!lm_head).*", QWEN),
        (r".*layers\.0\.self_attn\.o_proj", {"o_proj"}),
    ],
)
def test_the_language_model_alone_is_adapted(checkpoints, family, frozen, targets, kinds):
    loaded = load_model(
        checkpoints[family], dtype="float32", freeze_vision_tower=frozen, freeze_merger=frozen
    )
    model = with_lora(loaded, LoraConfig(rank=2, target_modules=targets), seed=0)
    assert adapted_parts(model) == {"language model": kinds}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("targets", "part", "key"),
    [
        (r".*visual\.blocks\..*\.qkv", "vision tower", "freeze_vision_tower"),
        (r".*\.(qkv|proj)", "vision tower", "freeze_vision_tower"),
        (r".*(proj|qkv|fc1|fc2|linear_fc1|linear_fc2)", "vision tower", "freeze_vision_tower"),
        (r".*merger.*", "merger", "freeze_merger"),
        (r".*visual.*", "vision tower", "freeze_vision_tower"),
    ],
)
def test_what_is_frozen_is_adapted_only_once_it_is_not(checkpoints, family, targets, part, key):
    settings = LoraConfig(rank=2, target_modules=targets)
    with pytest.raises(LoraError, match=rf"layers? of the {part}, .*set model\.{key}: false"):
        with_lora(load_model(checkpoints[family], dtype="float32", freeze_merger=True), settings, seed=0)
    thawed = load_model(checkpoints[family], dtype="float32", freeze_vision_tower=False, freeze_merger=False)
    assert part in adapted_parts(with_lora(thawed, settings, seed=0))


@pytest.mark.parametrize(
    ("targets", "reason"),
    [
        (["q_proj", "qkv"], r"no linear layer 'qkv'; it has down_proj, .*, q_proj.*The vision tower has"),
        (["qkv", "proj"], "no linear layer 'qkv'"),
        (["q_porj"], r"no linear layer 'q_porj'; it has .*did you mean q_proj\?"),
        (["lm_head"], "no linear layer 'lm_head'"),
        (["proj"], "no linear layer 'proj'"),
        (["oj"], "no linear layer 'oj'"),
        (["embed_tokens"], "no linear layer 'embed_tokens'"),
        ([""], "no linear layer ''"),
        (r".*(q_proj|lm_head)", "finds the head"),
        (r".*", "finds the head"),
        (r".*\.qproj", "finds no linear layer; a whole name is model"),
        (r".*embed_tokens", "finds no linear layer"),
        ("dummy-target.modules", "finds no linear layer"),
    ],
)
def test_a_target_that_is_not_there_is_refused(tiny_checkpoint, targets, reason):
    with pytest.raises(LoraError, match=reason):
        with_lora(load_model(tiny_checkpoint, dtype="float32"), LoraConfig(target_modules=targets), seed=0)


@pytest.mark.parametrize("kept", [[0], [1], [0, 1]])
@pytest.mark.parametrize("targets", [r".*layers\.{}\..*proj", r".*visual\.blocks\.{}\..*(qkv|proj)"])
def test_an_expression_finds_just_what_it_says(tiny_checkpoint, kept, targets):
    loaded = load_model(tiny_checkpoint, dtype="float32", freeze_vision_tower=False)
    linear = linear_layers(loaded)
    expression = targets.format(f"({'|'.join(map(str, kept))})")
    expected = {name for name in linear if re.fullmatch(expression, name)}
    model = with_lora(loaded, LoraConfig(rank=2, target_modules=expression), seed=0)
    found = {
        name.partition(".lora_")[0].removeprefix("base_model.model.")
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    assert found == expected != set()


def test_what_is_adapted_is_told(checkpoints, tmp_path):
    model = with_lora(load_model(checkpoints["qwen3_vl"], dtype="float32"), LoraConfig(rank=2), seed=0)
    record = adapted_layers(model)
    layers = model.config.text_config.num_hidden_layers
    assert record.layers == {"language model": dict.fromkeys(sorted(QWEN), layers)}
    assert record.parameters == sum(p.numel() for name, p in model.named_parameters() if ".lora_" in name)
    assert record.text == (
        f"adapters of {record.parameters:,} parameters on {7 * layers} layers of 7 kinds in the language"
        f" model ({layers} each of {', '.join(sorted(QWEN))}); vision tower and merger stay as they are"
    )
    record.write(tmp_path / "adapters.json")
    assert AdaptersRecord.read(tmp_path / "adapters.json") == record
    for broken in ("", "[]", '{"layers": 3}', '{"layers": {"a": {"b": "c"}}, "parameters": "x"}'):
        (tmp_path / "adapters.json").write_text(broken)
        AdaptersRecord.read(tmp_path / "adapters.json")


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_every_family_has_its_language_model_adapted(family, tmp_path):
    build_tiny(family, tmp_path, seed=0)
    model = with_lora(load_model(tmp_path, dtype="float32"), LoraConfig(rank=2), seed=0)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all("language_model" in name for name in trained)


def test_a_checkpoint_holds_adapters_only_and_peft_and_transformers_load_it(adapter, adapted, batch):
    assert is_adapter(adapter)
    assert infer_family(adapter) == "qwen3_vl"
    assert all("lora_" in name for name in load_file(adapter / "adapter_model.safetensors"))
    expected = logits(adapted, batch)
    base = AutoModelForImageTextToText.from_pretrained(base_of(adapter), dtype="float32")
    torch.testing.assert_close(logits(PeftModel.from_pretrained(base, str(adapter)), batch), expected)
    by_transformers = AutoModelForImageTextToText.from_pretrained(adapter, dtype="float32")
    torch.testing.assert_close(logits(by_transformers, batch), expected)


def test_merged_logits_are_those_with_the_adapters_on(adapter, adapted, tiny_checkpoint, batch, tmp_path):
    write_merged(adapter, tmp_path / "merged")
    assert not is_adapter(tmp_path / "merged")
    expected = logits(adapted, batch)
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", dtype="float32")
    torch.testing.assert_close(logits(merged, batch), expected, rtol=1e-5, atol=1e-5)
    assert (expected - logits(load_merged(tiny_checkpoint), batch)).abs().max() > 0.1  # it was worth merging
    assert load_model(tmp_path / "merged", dtype="float32") is not None
    assert Renderer.from_pretrained(tmp_path / "merged", "qwen3_vl")


def test_a_base_that_has_gone_is_named(adapter, tmp_path):
    moved = tmp_path / "checkpoint-3"
    moved.mkdir()
    settings = json.loads((adapter / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "/nowhere/model"
    (moved / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(LoraError, match="/nowhere/model, which is not there"):
        load_merged(moved)


def test_export_merges_and_describes_the_run(adapter, adapted, batch, tmp_path):
    run = tmp_path / "runs" / "zoom"
    checkpoint = run / "dpo" / "checkpoint-3"
    checkpoint.parent.mkdir(parents=True)
    adapter_copy = json.loads((adapter / "adapter_config.json").read_text())
    assert adapter_copy["peft_type"] == "LORA"
    checkpoint.symlink_to(adapter, target_is_directory=True)
    stages = [
        {"name": "sft", "stage": "sft", "data": {"mixture": {"chats": 1.0}}},
        {"name": "beside", "stage": "sft", "data": {"mixture": {"other": 1.0}}},
        {
            "name": "dpo",
            "stage": "dpo",
            "start_from": "sft",
            "data": {"mixture": {"pairs": 0.25, "votes": 0.75}},
        },
        {"name": "rl", "stage": "rl", "tasks": [{"data": "later", "ratio": 1.0}]},
    ]
    resolved = {"name": "zoom", "model": {"name_or_path": "Qwen/Qwen3-VL-2B-Instruct"}, "stages": stages}
    (run / "resolved.json").write_text(json.dumps(resolved))
    (run / "config.yaml").write_text("name: zoom\n")
    (run / "data.json").write_text(json.dumps({"pairs": "abcdef0123456789"}))
    (run / "licences.json").write_text(json.dumps({"pairs": "CC-BY-4.0"}))
    rows = [
        {"stage": stage, "task": "test", "accuracy": accuracy, "low": 0.1, "high": 0.9, "n": 64}
        for stage, accuracy in (("sft", 0.1), ("sft", 0.25), ("beside", 0.9), ("dpo", 0.5), ("rl", 0.75))
    ]
    (run / "evaluation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    held_out = [
        ("dpo", 0, 0.6931, 0.0),
        ("dpo", 2, 0.61, 0.5),
        ("dpo", 3, 0.5234, 0.875),
        ("rl", 1, 1.0, 1.0),
    ]
    metrics = [
        {"stage": "dpo", "step": 1, "loss": 0.69},
        *(
            {"stage": stage, "step": step, "eval_loss": loss, "eval_rewards/accuracies": accuracy}
            for stage, step, loss, accuracy in held_out
        ),
        {"stage": "dpo", "step": 3, "eval_rewards/margins": None},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    export(checkpoint, tmp_path / "out")
    exported = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="float32")
    torch.testing.assert_close(logits(exported, batch), logits(adapted, batch), rtol=1e-5, atol=1e-5)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model: Qwen/Qwen3-VL-2B-Instruct" in card
    assert "by `sft` (sft), then `dpo` (dpo)." in card
    assert "| dpo | pairs | 25% | CC-BY-4.0 | abcdef012345 |" in card
    assert "| sft | test | 0.250 [0.100, 0.900] | 64 |\n| dpo | test | 0.500 [0.100, 0.900] | 64 |\n" in card
    assert "| dpo | loss | 0.6931 (step 0) | 0.5234 (step 3) |" in card
    assert "| dpo | rewards/accuracies | 0 (step 0) | 0.875 (step 3) |" in card
    assert "margins" not in card
    assert "| rl |" not in card
    assert "| beside |" not in card
    assert "later" not in card
    assert "0.750" not in card


def test_export_of_a_whole_model_leaves_the_training_state_behind(tiny_checkpoint, tmp_path):
    source = tmp_path / "checkpoint-1"
    source.mkdir()
    for path in tiny_checkpoint.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    for name in ("optimizer.pt", "rng_state_0.pth", "trainer_state.json", "manifest.json"):
        (source / name).write_bytes(b"x")
    export(source, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {path.name for path in tiny_checkpoint.iterdir()} | {"README.md"}
    with pytest.raises(ExportError, match="is not an empty directory"):
        export(source, tmp_path / "out")
    with pytest.raises(ExportError, match="is no checkpoint"):
        export(tmp_path, tmp_path / "other")
