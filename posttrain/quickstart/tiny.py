"""Build tiny but real Qwen-VL models, on which every stage and test runs on a CPU in minutes.

The classes are transformers' own and unchanged; only the sizes differ (1.5 to 2 M parameters). The tokenizer
is the families' byte-level BPE with its special tokens, trained on the quickstart's texts. Phrases that never
vary (the tool's description, the JSON of a call, coordinates) are single tokens, so that an episode is about
80 tokens long.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict, get_args

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
from transformers.video_processing_utils import BaseVideoProcessor

from posttrain.config.tiny_model import TinyModelStage
from posttrain.models.load import write_experts_as_published
from posttrain.quickstart import marker_scenes
from posttrain.rendering.chat_templates import TemplateName, chat_template
from posttrain.rendering.inline_calls import InlineCalls
from posttrain.rendering.tools import declared_spec
from posttrain.types import ToolSpec

#: The `model_type`s that can be built.
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


class _Pixels(TypedDict, total=False):
    """Settings of an image processor: mean and deviation of the channels."""

    image_mean: list[float]
    image_std: list[float]


@dataclass(frozen=True)
class _Architecture:
    """What one `model_type` is made of.

    Attributes:
        config: Configuration class.
        model: Model class.
        processor: Processor class.
        video_processor: Class of the video processor, which is part of the processor.
        template: Name of the chat template.
        rope: Settings of M-RoPE.
        text: Other keys of the text configuration that are particular to this architecture.
        vision: Keys of the vision configuration that are particular to this architecture.
        pixels: Settings of the image processor that differ from the class's defaults.
    """

    config: Callable[..., PreTrainedConfig]
    model: type[PreTrainedModel]
    processor: type[ProcessorMixin]
    video_processor: type[BaseVideoProcessor]
    template: TemplateName
    rope: Mapping[str, object]
    text: Mapping[str, object]
    vision: Mapping[str, object]
    pixels: _Pixels


_HALVES: _Pixels = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
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
        rope=_QWEN2_ROPE,
        text={},
        vision={"embed_dim": 96, "hidden_size": WIDTH, "mlp_ratio": 3},
        pixels={},
    ),
    "qwen2_5_vl": _Architecture(
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLVideoProcessor,
        "qwen2_5_vl",
        rope=_QWEN2_ROPE,
        text={},
        # All blocks but the middle one attend within windows of 2×2 merged patches, a quarter of an image.
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
        rope=_QWEN3_ROPE,
        text={"head_dim": HEAD_WIDTH, "tie_word_embeddings": False},
        vision=_QWEN3_VISION,
        pixels=_HALVES,
    ),
    "qwen3_vl_moe": _Architecture(
        Qwen3VLMoeConfig,
        Qwen3VLMoeForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
        "qwen3_vl",
        rope=_QWEN3_ROPE,
        text={
            "head_dim": HEAD_WIDTH,
            "tie_word_embeddings": False,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 192,
            "norm_topk_prob": True,  # as published: vLLM reads it, transformers always does so
        },
        vision=_QWEN3_VISION,
        pixels=_HALVES,
    ),
}

#: Ends of the names of weights that end a residual branch, in any of the families.
_BRANCH_ENDS = (
    "o_proj.weight",
    "down_proj.weight",
    "down_proj",  # the experts' weights are parameters of their own
    "attn.proj.weight",
    "linear_fc2.weight",
    "fc2.weight",
)


def build_tiny(model_type: TinyType, directory: Path, seed: int = 0) -> None:
    """Write a freshly initialised checkpoint that transformers, PEFT and vLLM can load.

    Args:
        model_type: The architecture.
        directory: Where to write; created if missing.
        seed: Seed of the weights.
    """
    architecture = _ARCHITECTURES[model_type]
    tokenizer = build_tokenizer()
    if model_type == "qwen2_vl":
        _add_whole(tokenizer, _inline_phrases(declared_spec(marker_scenes.TOOL)))
    processor = _build_processor(architecture, tokenizer)
    config = _build_config(architecture, tokenizer)
    torch.manual_seed(seed)
    model = architecture.model(config)
    initialise(model)
    write_experts_as_published(model)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)


@torch.no_grad()
def initialise(model: PreTrainedModel) -> None:
    """Draw a model's weights anew, with standard deviations that suit its width.

    transformers' default, 0.02 everywhere, is meant for widths in the thousands: at a width of 128 the model
    learned nothing in 800 steps. Here matrices get 1/√fan_in, divided by the square root of the number of
    residual branches if they end such a branch; position embeddings get 0.5.

    Args:
        model: A Qwen-VL model; changed in place.
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
    # The head starts with the weights of the embeddings (they are not tied), so that a token that is in the
    # residual stream is likely from the beginning.
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(embeddings, torch.nn.Embedding)
    assert isinstance(head, torch.nn.Linear)
    head.weight.copy_(embeddings.weight / math.sqrt(embeddings.weight.shape[1]))


def _build_config(architecture: _Architecture, tokenizer: Qwen2Tokenizer) -> PreTrainedConfig:
    """Make the configuration of a model with this tokenizer."""
    token_id = tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 10_000.0, **architecture.rope}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": WIDTH // HEAD_WIDTH,
        "num_key_value_heads": 2,
        "max_position_embeddings": TinyModelStage.positions,
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
        text_config={**text, **architecture.text, "rope_parameters": rope},
        vision_config={**vision, **architecture.vision},
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=False,
        dtype="float32",
    )


def _build_processor(architecture: _Architecture, tokenizer: Qwen2Tokenizer) -> ProcessorMixin:
    """Make the processor of a checkpoint, in which every image has the same number of pixels."""
    pixels = {
        "patch_size": PATCH_SIZE,
        "merge_size": MERGE_SIZE,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": IMAGE_SIDE**2, "longest_edge": IMAGE_SIDE**2},
        **architecture.pixels,
    }
    return architecture.processor(
        image_processor=Qwen2VLImageProcessor(**pixels),
        tokenizer=tokenizer,
        video_processor=architecture.video_processor(**pixels),
        chat_template=chat_template(architecture.template),
    )


def build_tokenizer() -> Qwen2Tokenizer:
    """Train a byte-level BPE on the task's texts, and add the families' special tokens."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=512, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    trained.train_from_iterator(marker_scenes.corpus(), trainer)
    vocabulary: dict[str, int] = trained.get_vocab()
    tokenizer = Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate(sorted(vocabulary, key=vocabulary.__getitem__))},
        merges=_merges(trained),  # pyright: ignore[reportArgumentType] (pairs are what it takes)
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    _add_whole(tokenizer, CONTROL_TOKENS, special=True)
    _add_whole(tokenizer, MARKUP_TOKENS)
    description = _tool_description(tokenizer, declared_spec(marker_scenes.TOOL))
    _add_whole(tokenizer, [description, *marker_scenes.phrases()])
    return tokenizer


def _add_whole(tokenizer: Qwen2Tokenizer, texts: Iterable[str], special: bool = False) -> None:
    """Add each text as one token."""
    added = [AddedToken(text, special=special, normalized=False) for text in texts]
    tokenizer.add_tokens(added)  # pyright: ignore[reportArgumentType] (transformers has a stub of AddedToken)


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Return the merges of a BPE, in the order in which they are applied."""
    return [(left, right) for left, right in json.loads(tokenizer.to_str())["model"]["merges"]]


def _tool_description(tokenizer: Qwen2Tokenizer, spec: ToolSpec) -> str:
    """Write the text that announces a tool in a system turn, which the families' templates have in common."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": ""}],
        tools=[spec.as_openai()],
        chat_template=chat_template("qwen3_vl"),
        tokenize=False,
    )
    return str(text).removeprefix("<|im_start|>system\n").split("<|im_end|>")[0]


def _inline_phrases(spec: ToolSpec) -> list[str]:
    """List what Qwen2-VL, whose calls have marks, writes in place of a description and the JSON of a call."""
    calls = InlineCalls("qwen2_vl")
    told = calls.announced([], [spec])[0].text.removeprefix("You are a helpful assistant.")
    before, after = calls.written(marker_scenes.zoom_call("<label>", [0, 0, 0, 0])).split("<label>")
    return [told, before, after.split("0, 0, 0, 0")[1], f"\n{calls.stop}", f"\n{calls.goes_on}"]
