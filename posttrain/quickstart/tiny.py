"""Build tiny, real Qwen-VL models: every stage and test runs on them, on a CPU, in minutes.

The classes are transformers' own and unchanged; only the sizes differ (1.5 to 2 M parameters). The
tokenizer is the families' byte-level BPE with its special tokens, trained on the quickstart's texts;
phrases that never vary (the tool's description, the call's boilerplate, coordinates) are single
tokens, so that an episode is about 80 tokens long.
"""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from posttrain.models.load import write_experts_as_published
from posttrain.plugins import resolve
from posttrain.quickstart import marker_scenes
from posttrain.rendering.chat_templates import TemplateName, chat_template
from posttrain.types import ToolSpec

#: `model_type`s of the models that can be built.
TinyType = Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"]
TINY_TYPES: tuple[TinyType, ...] = get_args(TinyType)

CONTROL_TOKENS = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
    "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>"
).split()
MARKUP_TOKENS = "<tool_call> </tool_call> <tool_response> </tool_response> <think> </think>".split()
IMAGE_SIDE = 64
PATCH_SIZE = 8
MERGE_SIZE = 2
WIDTH = 128
HEAD_WIDTH = 32


@dataclass(frozen=True)
class _Architecture:
    """What one `model_type` is made of.

    Attributes:
        config: Configuration class.
        model: Model class.
        processor: Processor class.
        video_processor: Video processor class, part of every processor.
        template: Its chat template.
        text: Keys of the text configuration that the others lack.
        vision: Keys of the vision configuration that the others lack.
        pixels: Keys of the image processor that differ from the class's (CLIP's mean and deviation).
    """

    config: Callable[..., PreTrainedConfig]
    model: type[PreTrainedModel]
    processor: type[ProcessorMixin]
    video_processor: type[Any]
    template: TemplateName
    text: dict[str, Any]
    vision: dict[str, Any]
    pixels: dict[str, Any]


_HALVES = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
_QWEN2_ROPE = {"mrope_section": [4, 6, 6]}
_QWEN3_ROPE = {"mrope_section": [6, 5, 5], "mrope_interleaved": True}
_QWEN3_VISION = {
    "hidden_size": 96,
    "intermediate_size": 256,
    "out_hidden_size": WIDTH,
    "num_position_embeddings": (IMAGE_SIDE // PATCH_SIZE) ** 2,
    "deepstack_visual_indexes": [1],
}
_ARCHITECTURES: dict[TinyType, _Architecture] = {
    "qwen2_vl": _Architecture(
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
        "qwen2_vl",
        text={"rope_parameters": _QWEN2_ROPE},
        vision={"embed_dim": 96, "hidden_size": WIDTH, "mlp_ratio": 3},
        pixels={},
    ),
    "qwen2_5_vl": _Architecture(
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLVideoProcessor,
        "qwen2_5_vl",
        text={"rope_parameters": _QWEN2_ROPE},
        # Windows of 2x2 merged patches, a quarter of an image, in all blocks but the middle one.
        vision={
            "hidden_size": 96,
            "intermediate_size": 256,
            "out_hidden_size": WIDTH,
            "window_size": IMAGE_SIDE // 2,
            "fullatt_block_indexes": [1],
        },
        pixels={},
    ),
    "qwen3_vl": _Architecture(
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
        "qwen3_vl",
        text={"head_dim": HEAD_WIDTH, "tie_word_embeddings": False, "rope_parameters": _QWEN3_ROPE},
        vision=_QWEN3_VISION,
        pixels=_HALVES,
    ),
    "qwen3_vl_moe": _Architecture(
        Qwen3VLMoeConfig,
        Qwen3VLMoeForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
        "qwen3_vl",
        text={
            "head_dim": HEAD_WIDTH,
            "tie_word_embeddings": False,
            "rope_parameters": _QWEN3_ROPE,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 192,
            "norm_topk_prob": True,  # as published: vLLM reads it, transformers always does so
        },
        vision=_QWEN3_VISION,
        pixels=_HALVES,
    ),
}

#: Weights that end a residual branch, in any of the families.
_BRANCH_ENDS = (
    "o_proj.weight",
    "down_proj.weight",
    "down_proj",  # the experts' weights are parameters of their own
    "attn.proj.weight",
    "linear_fc2.weight",
    "fc2.weight",
)


def build_tiny(model_type: TinyType, directory: Path, seed: int = 0) -> None:
    """Write a freshly initialised checkpoint that transformers, PEFT and vLLM load as it is.

    Args:
        model_type: Which architecture.
        directory: Where to write; created where missing.
        seed: Seed of the weights.
    """
    architecture = _ARCHITECTURES[model_type]
    processor = _build_processor(architecture)
    config = _build_config(architecture, processor)
    torch.manual_seed(seed)
    model = architecture.model(config)
    initialise(model)
    write_experts_as_published(model)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)


@torch.no_grad()
def initialise(model: PreTrainedModel) -> None:
    """Fan-in scaled weights.

    transformers' default (a normal of 0.02 everywhere) is meant for widths in the thousands: at a
    width of 128 it learned nothing in 800 steps. Matrices get std 1/√fan_in, the outputs of residual
    branches are scaled down by √(2·layers), position embeddings get std 0.5.
    """
    branches = [name for name, _ in model.named_modules() if name.endswith((".mlp", ".attn", ".self_attn"))]
    layers = sum("merger" not in name for name in branches)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            continue
        if name.endswith("pos_embed.weight"):
            std = 0.5
        elif name.endswith("embed_tokens.weight"):
            std = 1.0
        else:
            # Experts are [experts, out, in]; a patch embedding is [out, in, time, height, width].
            std = 1.0 / math.sqrt(parameter.shape[-1] if ".experts." in name else parameter[0].numel())
        if name.endswith(_BRANCH_ENDS):
            std /= math.sqrt(layers) if "merger" not in name else 1.0
        parameter.normal_(0.0, std)
    # The head starts as the transposed embeddings (not tied: each is trained on its own), so that a
    # word found in the residual stream is already half spoken.
    embeddings = model.get_input_embeddings().weight
    model.get_output_embeddings().weight.copy_(embeddings / math.sqrt(embeddings.shape[1]))  # type: ignore[operator]


def _build_config(architecture: _Architecture, processor: Any) -> PreTrainedConfig:
    token_id = processor.tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 10_000.0} | architecture.text["rope_parameters"]
    text = {
        "vocab_size": len(processor.tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": WIDTH // HEAD_WIDTH,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "pad_token_id": token_id("<|endoftext|>"),
        "bos_token_id": None,
        "eos_token_id": token_id("<|im_end|>"),
    }
    vision = {
        "depth": 3,
        "num_heads": 4,
        "patch_size": PATCH_SIZE,
        "spatial_merge_size": MERGE_SIZE,
        "temporal_patch_size": 2,
    }
    return architecture.config(
        text_config=text | architecture.text | {"rope_parameters": rope},
        vision_config=vision | architecture.vision,
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=False,
        dtype="float32",
    )


def _build_processor(architecture: _Architecture) -> ProcessorMixin:
    pixels = {
        "patch_size": PATCH_SIZE,
        "merge_size": MERGE_SIZE,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": IMAGE_SIDE**2, "longest_edge": IMAGE_SIDE**2},
    } | architecture.pixels
    return architecture.processor(
        image_processor=Qwen2VLImageProcessor(**pixels),
        tokenizer=_build_tokenizer(),
        video_processor=architecture.video_processor(**pixels),
        chat_template=chat_template(architecture.template),
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
    zoom: ToolSpec = resolve(marker_scenes.TOOL, "posttrain.tools", object)().spec  # pyright: ignore[reportCallIssue]
    description = _tool_description(tokenizer, zoom)
    _add_whole(tokenizer, [description, *marker_scenes.phrases()])
    return tokenizer


def _add_whole(tokenizer: Any, texts: Iterable[str], special: bool = False) -> None:
    """Make each text one token."""
    tokenizer.add_tokens([AddedToken(text, special=special, normalized=False) for text in texts])


def _merges(tokenizer: Tokenizer) -> Any:
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def _tool_description(tokenizer: Qwen2Tokenizer, spec: ToolSpec) -> str:
    """What announces the tool in a system turn, exactly as every family's template writes it."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": ""}],
        tools=[spec.as_openai()],
        chat_template=chat_template("qwen3_vl"),
        tokenize=False,
    )
    return str(text).removeprefix("<|im_start|>system\n").split("<|im_end|>")[0]
