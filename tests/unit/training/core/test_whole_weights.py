"""The weights that engines are sent are those that a checkpoint holds."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from posttrain.config.lora import LoraConfig
from posttrain.models.load import load_model
from posttrain.models.lora import load_merged, with_lora
from posttrain.models.supervised_head import add_supervised_head
from posttrain.quickstart.tiny import TINY_TYPES, TinyType, build_tiny
from posttrain.training.core.checkpoints import write_weights
from posttrain.training.core.sharding import shard
from posttrain.training.core.whole_weights import WholeWeights, adapter_tensors

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def text_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text model whose head is its embeddings."""
    sizes: Any = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = LlamaConfig(vocab_size=90, tie_word_embeddings=True, **sizes)
    directory = tmp_path_factory.mktemp("text")
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory


def sent(model: Any) -> dict[str, torch.Tensor]:
    """Iterate over the weights, and compare them with what was said of them before."""
    weights = WholeWeights(model)
    described = weights.described()
    found = list(weights)
    assert [each.name for each in described] == [name for name, _ in found]
    assert [(each.dtype, each.shape) for each in described] == [(t.dtype, tuple(t.shape)) for _, t in found]
    assert len(dict(found)) == len(found)
    return dict(found)


def written(directory: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in directory.glob("*.safetensors") for name, t in load_file(file).items()}


@pytest.mark.parametrize("model_type", [*TINY_TYPES, "text"])
def test_they_are_those_of_a_checkpoint(model_type: TinyType, text_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = text_checkpoint
    if model_type in TINY_TYPES:
        build_tiny(model_type, checkpoint := tmp_path / "tiny")
    model: Any = load_model(checkpoint, dtype="bfloat16")
    add_supervised_head(model)
    shard(model, "fsdp2", CPU)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)  # another than the one that was loaded, and not a value of bfloat16
        ids = torch.tensor([[11, 12]])
        model(input_ids=ids, supervised_labels=ids)  # FSDP2 leaves some weights gathered after it
    write_weights(model, tmp_path / "written")
    expected = written(tmp_path / "written")
    found = sent(model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}


def adapted(checkpoint: Path, **settings: Any) -> PeftModel:
    """A model with adapters that do something."""
    quantization = settings.get("quantization")
    model = load_model(checkpoint, dtype="float32", quantization=quantization)
    add_supervised_head(model)
    wrapped = with_lora(model, LoraConfig.model_validate({"rank": 2} | settings), seed=0)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
    shard(wrapped, "none" if quantization else "fsdp2", CPU)
    return wrapped


@pytest.mark.parametrize("text", [False, True])
def test_adapters_are_merged(
    text: bool, text_checkpoint: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    model = adapted(text_checkpoint if text else tiny_checkpoint)
    write_weights(model, tmp_path / "adapter")
    load_merged(tmp_path / "adapter").save_pretrained(tmp_path / "merged")
    expected = written(tmp_path / "merged")
    found = sent(model)
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    before = load_model(text_checkpoint if text else tiny_checkpoint, dtype="float32").state_dict()
    changed = [name for name in found if name in before and not torch.equal(found[name], before[name])]
    assert len(changed) == 7 * sum("q_proj" in name for name in changed) > 0


def test_adapters_travel_as_their_file_holds_them(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = adapted(tiny_checkpoint)
    write_weights(model, tmp_path)
    expected = load_file(tmp_path / "adapter_model.safetensors")
    found = adapter_tensors(model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantized_weights_are_sent_as_what_they_stand_for(
    quantization: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """An engine with these weights computes what the learner does."""
    model = adapted(tiny_checkpoint, quantization=quantization).train()
    plain: Any = load_model(tiny_checkpoint, dtype="float32")
    add_supervised_head(plain)
    missing, unexpected = plain.load_state_dict(sent(model), strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}  # which is the embeddings
    ids = torch.arange(11, 60)[None]
    with torch.no_grad():
        ours = model(input_ids=ids, supervised_labels=ids)
        theirs = plain(input_ids=ids, supervised_labels=ids)
    tolerance = 1e-4 if quantization == "nf4" else 0.2  # int8 rounds what it multiplies as well
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
