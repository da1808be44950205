"""Compute the sizes of a run: samples and steps of each stage, and roughly how much memory it takes."""

from typing import Any

from posttrain.config.model import ModelConfig, read_model_config
from posttrain.config.run import RunConfig
from posttrain.config.stage import ModelBytes

#: (all, vision tower) parameters of the published models, in billions.
KNOWN_SIZES: dict[str, tuple[float, float]] = {
    "qwen2-vl-2b": (2.2, 0.67),
    "qwen2-vl-7b": (8.3, 0.67),
    "qwen2-vl-72b": (73.4, 0.67),
    "qwen2.5-vl-3b": (3.8, 0.67),
    "qwen2.5-vl-7b": (8.3, 0.67),
    "qwen2.5-vl-32b": (33.5, 0.67),
    "qwen2.5-vl-72b": (73.4, 0.67),
    "qwen3-vl-2b": (2.1, 0.4),
    "qwen3-vl-4b": (4.4, 0.4),
    "qwen3-vl-8b": (8.8, 0.58),
    "qwen3-vl-32b": (33.4, 0.58),
    "qwen3-vl-30b-a3b": (31.1, 0.54),
    "qwen3-vl-235b-a22b": (236.0, 0.54),
}
BYTES = {"float32": 4, "bfloat16": 2}


def batch_arithmetic(config: RunConfig) -> list[tuple[str, str]]:
    """Compute what the batch settings of each stage amount to.

    Returns:
        Rows of (stage and quantity, calculation), for a table of two columns.

    Example:
        [("rl: episodes a step", "16 prompts × 8 = 128"), …]
    """
    return [
        (f"{stage.name}: {quantity}", text)
        for stage in config.stages
        for quantity, text in stage.arithmetic()
    ]


def memory_estimate(config: RunConfig) -> list[tuple[str, str]]:
    """Estimate the memory of weights, gradients and optimiser, without activations and the engine's cache.

    Returns:
        Rows of (process, memory); empty if the model's size is not known.
    """
    sizes = model_size(config.model)
    if sizes is None:
        return []
    total, vision = sizes
    trainable = total - vision if config.model.freeze_vision_tower else total
    model = ModelBytes(total, trainable, BYTES[config.model.dtype])
    rows = [
        ("model", f"{_count(total)} parameters, {_count(trainable)} of them trained, {config.model.dtype}")
    ]
    for stage in config.stages:
        if stage.learners:
            learner = f"{_amount(stage.learner_bytes(model))} and activations"
            rows.append((f"{stage.name}: each of {stage.learners} learner processes", learner))
        if stage.engines:
            engine = f"{_amount(model.width * total)} and the cache"
            rows.append((f"{stage.name}: each of {stage.engines} engines", engine))
    return rows


def model_size(model: ModelConfig) -> tuple[float, float] | None:
    """Estimate the number of all parameters, and of the vision tower's; None if the model is not known.

    The numbers come from a local `config.json`, or else from the model's name.
    """
    if model.name_or_path is None:
        return None
    local = read_model_config(model.name_or_path)
    if "vision_config" in local:
        return count_parameters(local)
    name = model.name_or_path.rpartition("/")[2].lower()
    known = max((key for key in KNOWN_SIZES if name.startswith(key)), key=len, default=None)
    return None if known is None else (KNOWN_SIZES[known][0] * 1e9, KNOWN_SIZES[known][1] * 1e9)


def count_parameters(config: dict[str, Any]) -> tuple[float, float]:
    """Count all parameters, and the vision tower's, by a Qwen-VL `config.json`, without norms and biases."""
    text, vision = config.get("text_config", config), config["vision_config"]
    hidden, heads = text["hidden_size"], text["num_attention_heads"]
    head_dim = text.get("head_dim") or hidden // heads
    attention = 2 * hidden * head_dim * (heads + text.get("num_key_value_heads", heads))
    if experts := text.get("num_experts", 0):
        feed_forward = experts * hidden * (3 * text["moe_intermediate_size"] + 1)
    else:
        feed_forward = 3 * hidden * text["intermediate_size"]
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    embeddings = text["vocab_size"] * hidden * (1 if tied else 2)
    width = vision.get("embed_dim") or vision["hidden_size"]
    inner = vision.get("intermediate_size") or int(vision.get("mlp_ratio", 4) * width)
    gated = config.get("model_type") == "qwen2_5_vl"
    tower = vision["depth"] * (4 * width**2 + (3 if gated else 2) * width * inner)
    merged = width * vision.get("spatial_merge_size", 2) ** 2
    mergers = (1 + len(vision.get("deepstack_visual_indexes", ()))) * merged * (merged + hidden)
    return embeddings + text["num_hidden_layers"] * (attention + feed_forward) + tower + mergers, tower


def _count(parameters: float) -> str:
    return f"{parameters / 1e9:.1f} B" if parameters >= 1e8 else f"{parameters / 1e6:.1f} M"


def _amount(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.0f} MiB"
