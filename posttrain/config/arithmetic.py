"""The sums behind a run: batches, updates, and roughly how much memory they take."""

import math
from typing import Any

from posttrain.config.distillation import DistillationStage
from posttrain.config.dpo import DpoStage
from posttrain.config.model import ModelConfig, read_model_config
from posttrain.config.rl import RlStage
from posttrain.config.run import RunConfig
from posttrain.config.sft import SftData, SupervisedStage, TinyModelStage
from posttrain.config.trainer import TrainerStage

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
    """What each stage's batch settings come to.

    Returns:
        Rows of (stage and quantity, sum), for a table of two columns.

    Example:
        [("rl: episodes a step", "16 prompts × 8 = 128"), …]
    """
    rows: list[tuple[str, str]] = []
    for stage in config.stages:
        if isinstance(stage, TinyModelStage):
            own = [
                ("images", f"{stage.steps} steps × {stage.batch_size} = {stage.steps * stage.batch_size:,}")
            ]
        elif isinstance(stage, SupervisedStage | DpoStage):
            own = _trainer_rows(stage)
            if isinstance(stage, SupervisedStage):
                own += _length_rows(stage.data)
            if isinstance(stage, DistillationStage):
                own.append(("answers", _answers(stage)))
        else:
            own = _rl_rows(stage)
        rows += [(f"{stage.name}: {quantity}", text) for quantity, text in own]
    return rows


def _trainer_rows(stage: SupervisedStage | DpoStage) -> list[tuple[str, str]]:
    size = stage.global_batch_size
    sizes = f"{stage.per_device_batch_size} × {stage.gradient_accumulation_steps} accumulated"
    total = (
        f"{stage.num_train_epochs or 1:g} × the data"
        if stage.max_steps is None
        else f"{stage.max_steps} steps × {size} = {stage.max_steps * size:,}"
    )
    mixture = ", ".join(f"{name} {share:.0%}" for name, share in stage.data.mixture.items())
    return [
        ("samples a step", f"{sizes} × {stage.num_workers} workers = {size}"),
        ("samples", total),
        ("mixture", mixture),
    ]


def _length_rows(data: SftData) -> list[tuple[str, str]]:
    """Packing, and the phases of a curriculum."""
    rows, curriculum = [], data.curriculum
    if data.packing:
        phases = "" if curriculum is None else f", in the first phase {curriculum.short_length:,}"
        rows.append(("packing", f"a step's samples in rows of up to {data.max_length:,} tokens{phases}"))
    if curriculum is not None:
        text = f"{curriculum.short_phase:.0%} of the steps up to {curriculum.short_length:,} tokens, then"
        long = f"{curriculum.long_share:.0%} of the samples longer, up to {data.max_length:,}"
        rows.append(("curriculum", f"{text} {long}"))
    return rows


def _answers(stage: DistillationStage) -> str:
    """Who answers how often."""
    teacher, samples = stage.teacher, stage.generation.samples_per_prompt
    name = teacher.checkpoint or teacher.stage or (teacher.endpoint and teacher.endpoint.model)
    if stage.num_prompts is None:
        return f"every prompt × {samples}, by {name}"
    return f"{stage.num_prompts} prompts × {samples} = {stage.num_prompts * samples:,}, by {name}"


def _rl_rows(stage: RlStage) -> list[tuple[str, str]]:
    algorithm, episodes = stage.algorithm, stage.episodes_per_step
    part = episodes // algorithm.mini_batches
    share = math.ceil(part / stage.num_workers)
    pieces = math.ceil(share / stage.micro_batch_size)
    prompts = ", ".join(f"{task.name} {task.ratio * stage.prompts_per_step:g}" for task in stage.tasks)
    updates = stage.max_steps * algorithm.mini_batches
    return [
        ("prompts a step", prompts),
        ("episodes a step", f"{stage.prompts_per_step} prompts × {algorithm.group_size} = {episodes}"),
        (
            "episodes an update",
            f"{episodes} / {algorithm.mini_batches} mini-batches = {part}; {share} a learner process, "
            f"in {pieces} of {min(share, stage.micro_batch_size)}",
        ),
        ("updates", f"{stage.max_steps} steps × {algorithm.mini_batches} = {updates:,}"),
        ("episodes", f"{stage.max_steps} steps × {episodes} = {stage.max_steps * episodes:,}"),
    ]


def memory_estimate(config: RunConfig) -> list[tuple[str, str]]:
    """Roughly what weights, gradients and optimiser take; activations and the engine's cache come on top.

    Returns:
        Rows of (what, how much); empty where the model's size is not known.
    """
    sizes = model_size(config.model)
    if sizes is None:
        return []
    total, vision = sizes
    width = BYTES[config.model.dtype]
    trainable = total - vision if config.model.freeze_vision_tower else total
    rows = [
        ("model", f"{_count(total)} parameters, {_count(trainable)} of them trained, {config.model.dtype}")
    ]
    for stage in config.stages:
        states = 1 if isinstance(stage, TrainerStage) and stage.optimizer == "muon" else 2
        # Adapters weigh next to nothing.
        with_lora = isinstance(stage, TrainerStage) and stage.lora is not None
        is_sharded = isinstance(stage, TrainerStage) and stage.sharding != "none"
        if with_lora:
            learner = width * total
        else:  # accelerate trains shards in float32
            trained = BYTES["float32"] if is_sharded else width
            learner = width * (total - trainable) + trained * trainable * (2 + states)
        if isinstance(stage, DpoStage) and not with_lora:
            learner += width * total  # the reference
        learner /= stage.num_workers if is_sharded else 1
        rows.append(
            (
                f"{stage.name}: each of {stage.num_workers} learner processes",
                f"{_amount(learner)} and activations",
            )
        )
        if isinstance(stage, RlStage):
            rows.append(
                (
                    f"{stage.name}: each of {stage.rollout.actors} engines",
                    f"{_amount(width * total)} and the cache",
                )
            )
    return rows


def model_size(model: ModelConfig) -> tuple[float, float] | None:
    """(all, vision tower) parameters, by a local `config.json` or by the name; None if neither tells."""
    if model.name_or_path is None:
        return None
    local = read_model_config(model.name_or_path)
    if "vision_config" in local:
        return count_parameters(local)
    name = model.name_or_path.rpartition("/")[2].lower()
    known = max((key for key in KNOWN_SIZES if name.startswith(key)), key=len, default=None)
    return None if known is None else (KNOWN_SIZES[known][0] * 1e9, KNOWN_SIZES[known][1] * 1e9)


def count_parameters(config: dict[str, Any]) -> tuple[float, float]:
    """(all, vision tower) parameters of a Qwen-VL `config.json`, norms and biases left out."""
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
