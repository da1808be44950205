"""Build a tiny, real Qwen3-VL: every stage and test runs on it, on a CPU, in minutes.

The classes are transformers' own and unchanged; only the sizes differ (about 1.5 M parameters). The
tokenizer is the family's byte-level BPE with its special tokens, trained on the quickstart's texts;
phrases that never vary (the tool's description, the call's boilerplate, coordinates) are single
tokens, so that an episode is about 80 tokens long.
"""

import json
import math
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from posttrain.data import marker_scenes
from posttrain.plugins import resolve
from posttrain.types import ToolSpec

CONTROL_TOKENS = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
    "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>"
).split()
MARKUP_TOKENS = "<tool_call> </tool_call> <tool_response> </tool_response> <think> </think>".split()
IMAGE_SIDE = 64
PATCH_SIZE = 8
MERGE_SIZE = 2


def chat_template(family: str = "qwen3_vl") -> str:
    """The family's chat template, as shipped with the package."""
    return (files("posttrain.models") / "templates" / f"{family}.jinja").read_text(encoding="utf-8")


def build_tiny_qwen3_vl(directory: Path, seed: int = 0) -> None:
    """Write a freshly initialised checkpoint that transformers, PEFT and vLLM load as it is.

    Args:
        directory: Where to write; created where missing.
        seed: Seed of the weights.
    """
    processor = _build_processor()
    config = _build_config(processor)
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(config)
    initialise(model)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)


@torch.no_grad()
def initialise(model: Qwen3VLForConditionalGeneration) -> None:
    """Fan-in scaled weights.

    transformers' default (a normal of 0.02 everywhere) is meant for widths in the thousands: at a
    width of 128 it learned nothing in 800 steps. Matrices get std 1/√fan_in, the outputs of residual
    branches are scaled down by √(2·layers), position embeddings get std 0.5.
    """
    layers = sum(name.endswith((".mlp", ".attn", ".self_attn")) for name, _ in model.named_modules())
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            continue
        if name.endswith("pos_embed.weight"):
            std = 0.5
        elif name.endswith("embed_tokens.weight"):
            std = 1.0
        else:
            std = 1.0 / math.sqrt(parameter[0].numel())
        if name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight", "linear_fc2.weight")):
            std /= math.sqrt(layers) if "merger" not in name else 1.0
        parameter.normal_(0.0, std)
    # The head starts as the transposed embeddings (not tied: each is trained on its own), so that a
    # word found in the residual stream is already half spoken.
    embeddings = model.model.language_model.embed_tokens.weight
    model.lm_head.weight.copy_(embeddings / math.sqrt(embeddings.shape[1]))


def _build_config(processor: Qwen3VLProcessor) -> Qwen3VLConfig:
    token_id = processor.tokenizer.convert_tokens_to_ids
    return Qwen3VLConfig(
        text_config={
            "vocab_size": len(processor.tokenizer),
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 4096,
            "pad_token_id": token_id("<|endoftext|>"),
            "bos_token_id": None,
            "eos_token_id": token_id("<|im_end|>"),
            "tie_word_embeddings": False,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 3,
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_heads": 4,
            "patch_size": PATCH_SIZE,
            "spatial_merge_size": MERGE_SIZE,
            "temporal_patch_size": 2,
            "out_hidden_size": 128,
            "num_position_embeddings": (IMAGE_SIDE // PATCH_SIZE) ** 2,
            "deepstack_visual_indexes": [1],
        },
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=False,
        dtype="float32",
    )


def _build_processor() -> Qwen3VLProcessor:
    size = {"shortest_edge": IMAGE_SIDE**2, "longest_edge": IMAGE_SIDE**2}
    vision = {
        "patch_size": PATCH_SIZE,
        "merge_size": MERGE_SIZE,
        "temporal_patch_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": size,
    }
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**vision),
        tokenizer=_build_tokenizer(),
        video_processor=Qwen3VLVideoProcessor(**vision),
        chat_template=chat_template(),
    )


def _build_tokenizer() -> Qwen2Tokenizer:
    """Byte-level BPE on the task's texts, with the family's special tokens after the merges."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=512, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    trained.train_from_iterator(marker_scenes.corpus(), trainer)
    vocabulary: dict[str, int] = trained.get_vocab()
    tokenizer: Any = Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate(sorted(vocabulary, key=vocabulary.__getitem__))},
        merges=_merges(trained),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    _add_whole(tokenizer, CONTROL_TOKENS, special=True)
    _add_whole(tokenizer, MARKUP_TOKENS)
    zoom: ToolSpec = resolve(marker_scenes.TOOL, "posttrain.tools")().spec  # pyright: ignore[reportCallIssue]
    description = _tool_description(tokenizer, zoom)
    _add_whole(tokenizer, [description, *marker_scenes.phrases()])
    return tokenizer


def _add_whole(tokenizer: Any, texts: Iterable[str], special: bool = False) -> None:
    """Make each text one token."""
    tokenizer.add_tokens([AddedToken(text, special=special, normalized=False) for text in texts])


def _merges(tokenizer: Tokenizer) -> Any:
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def _tool_description(tokenizer: Qwen2Tokenizer, spec: ToolSpec) -> str:
    """The system turn that announces the tool, exactly as the template writes it."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": ""}],
        tools=[spec.as_openai()],
        chat_template=chat_template(),
        tokenize=False,
    )
    return str(text).removeprefix("<|im_start|>system\n").split("<|im_end|>")[0]
