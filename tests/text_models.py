"""Tiny language models without a vision tower."""

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from posttrain.quickstart.tiny import build_tokenizer
from posttrain.rendering.chat_templates import chat_template


def build_text(directory: Path, seed: int, kind: str, tied: bool) -> Path:
    """Write a tiny text model with the tokenizer and the template of the tiny Qwen3-VL.

    Args:
        directory: Where it goes.
        seed: Of its weights.
        kind: `llama` or `qwen3`.
        tied: Whether its head is its embeddings.
    """
    tokenizer = build_tokenizer()
    tokenizer.chat_template = chat_template("qwen3_vl")
    tokenizer.eos_token = "<|im_end|>"
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 256,
        "tie_word_embeddings": tied,
        "initializer_range": 0.2,
        "eos_token_id": tokenizer.eos_token_id,
    }
    torch.manual_seed(seed)
    model = (
        LlamaForCausalLM(LlamaConfig(**settings))
        if kind == "llama"
        else Qwen3ForCausalLM(Qwen3Config(**settings))
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
