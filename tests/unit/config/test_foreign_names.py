"""What other toolkits call our keys: every name leads somewhere, and the message says where."""

from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from posttrain.config import ConfigError, DatasetConfig, Document, RunConfig, build_run
from posttrain.config.foreign_names import FOREIGN_NAMES, LEFT_OUT
from posttrain.config.schema import sections_of

DATA = {"mixture": {"pairs": 1.0}}


def keys(section: type[BaseModel]) -> Iterator[str]:
    """Every key of a section and of those inside."""
    yield from section.model_fields
    for info in section.model_fields.values():
        for inner in sections_of(info.annotation):
            yield from keys(inner)


def refusal(stage: dict) -> str:
    run = {"name": "test", "model": {"name_or_path": "Qwen/Qwen3-VL-2B-Instruct"}, "stages": [stage]}
    with pytest.raises(ConfigError) as caught:
        build_run(Document(run, "run.yaml"))
    return str(caught.value)


def test_every_name_leads_to_a_key_of_ours():
    ours = {*keys(RunConfig), *keys(DatasetConfig)}
    assert {name for name in FOREIGN_NAMES.values() if name not in ours} == set()
    assert set(FOREIGN_NAMES) & set(LEFT_OUT) == set()


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ("lora_r", "it is called lora.rank (lora_r elsewhere)"),  # TRL
        ("lora_rank", "it is called lora.rank (lora_rank elsewhere)"),  # verl, ms-swift, LLaMA-Factory
        ("lora_alpha", "it is called lora.alpha"),
        ("lora_target", "it is called lora.target_modules"),  # LLaMA-Factory
        ("lora_target_modules", "it is called lora.target_modules"),  # TRL
        ("finetuning_type", "it is called lora (finetuning_type elsewhere)"),  # LLaMA-Factory
        ("train_type", "it is called lora"),  # ms-swift
        ("pref_beta", "it is called beta"),  # LLaMA-Factory
        ("dpo_beta", "it is called beta"),
        ("pref_loss", "it is called loss_type"),
        ("val_dataset", "it is called eval_dataset"),  # ms-swift
        ("cutoff_len", "it is called data.max_length"),  # LLaMA-Factory
        ("ref_model", "the reference is the checkpoint that the stage begins with"),
        ("pref_ftx", "in an sft stage before"),
        ("max_prompt_length", "a prompt is never cut"),  # TRL
    ],
)
def test_a_preference_stage_is_told_our_name(key, remedy):
    message = refusal({"stage": "dpo", "data": DATA, key: 1})
    assert f"stages[0].{key}: unknown key" in message
    assert remedy in message


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ("teacher_model_name_or_path", "it is called teacher.checkpoint"),  # TRL
        ("max_completion_length", "it is called generation.max_new_tokens"),  # TRL
        ("max_response_length", "it is called generation.max_new_tokens"),  # verl
        ("topk", "it is called loss.top_k"),  # verl
        ("temperature", "it belongs in generation.temperature"),
    ],
)
def test_a_distillation_stage_is_told_our_name(key, remedy):
    teacher = {"checkpoint": "Qwen/Qwen3-VL-32B-Instruct"}
    message = refusal({"stage": "distillation", "data": DATA, "max_steps": 1, "teacher": teacher, key: 1})
    assert f"stages[0].{key}: unknown key" in message
    assert remedy in message


def test_inside_the_adapters_the_old_name_is_told_as_well():
    message = refusal({"stage": "dpo", "data": DATA, "lora": {"r": 8, "lora_alpha": 16}})
    assert "it is called rank (r elsewhere)" in message
    assert "it is called alpha (lora_alpha elsewhere)" in message
