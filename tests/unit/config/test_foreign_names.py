"""What other toolkits call our keys: every name leads somewhere, and the message says where."""

import copy
import itertools
import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from posttrain.config import ConfigError, DatasetConfig, Document, RunConfig, build_run
from posttrain.config.document import key_text
from posttrain.config.foreign_names import FOREIGN_NAMES, LEFT_OUT
from posttrain.config.problems import parse_key
from posttrain.config.schema import sections_of

DATA = {"mixture": {"pairs": 1.0}}
ALGORITHMS = ("sapo", "grpo", "gspo", "cispo")


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


#: A run with every kind of section, each section by the path of its keys.
STAGES = [
    {"stage": "sft", "data": DATA, "max_steps": 1, "lora": {}, "loss": {}},
    {"stage": "dpo", "data": DATA, "lora": {}},
    {"stage": "distillation", "data": DATA, "max_steps": 1, "loss": {}, "generation": {}, "teacher": {}},
    *(
        {"stage": "rl", "max_steps": 1, "algorithm": {"name": name}, "rollout": {}, "tasks": [{}]}
        for name in ALGORITHMS
    ),
    {"stage": "on_policy_distillation", "max_steps": 1, "teacher": {}, "rollout": {}, "tasks": [{}]},
    {"stage": "tiny_model", "max_steps": 1},
]
RUN = {"name": "test", "model": {}, "cluster": {}, "evaluation": {"tasks": [{}]}}


def section_paths(data: Any, key: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every section of a run's data; `mixture` maps names."""
    if isinstance(data, dict) and key[-1:] != ("mixture",):
        yield key
        for name, value in data.items():
            yield from section_paths(value, (*key, name))
    for number, value in enumerate(data if isinstance(data, list) else ()):
        yield from section_paths(value, (*key, number))


CASES = [
    (stage, path)
    for stage in STAGES
    for path in section_paths(RUN | {"stages": [stage]})
    if path not in (("stages",),)
]


def hint_at(stage: dict[str, Any], path: tuple[str | int, ...], name: str) -> str:
    """The remedy for an unknown key in a section of a run with one stage."""
    run: Any = copy.deepcopy(RUN | {"stages": [stage]})
    section = run
    for part in path:
        section = section[part]
    section[name] = 1
    with pytest.raises(ConfigError) as caught:
        build_run(Document(run, "run.yaml"))
    wrong = key_text((*path, name))
    return next(each.remedy for each in caught.value.problems if each.key == wrong)


@pytest.mark.parametrize(
    ("stage", "path"), CASES, ids=[f"{stage['stage']}-{key_text(path) or 'run'}" for stage, path in CASES]
)
def test_a_hint_names_only_keys_that_are_there(stage: dict[str, Any], path: tuple[str | int, ...]) -> None:
    """Every foreign name in every section: what the hint names is taken there, or said to be elsewhere."""
    for name in [
        *FOREIGN_NAMES,
        "beta",
        "loss_type",
        "tasks",
        "eval_dataset",
        "tau_pos",
        "packing",
        "clip_low",
    ]:
        section: Any = RUN | {"stages": [stage]}
        for part in path:
            section = section[part]
        if name in section:
            continue
        try:
            hint = hint_at(stage, path, name)
        except StopIteration:
            continue  # the section has a key of this name, or says itself why not
        named = re.match(r"it (?:is called|belongs in) ([\w.\[\]]+)(?! now)", hint)
        if named is None or ", and only " in hint:
            kinds = re.search(r"only ([\w ]+) stages have it", hint)
            for kind in kinds[1].split(" and ") if kinds else ():
                own = next(each for each in STAGES if each["stage"] == kind)
                found = hint_at(own, ("stages", 0), "no_such_key_at_all")
                assert (name in found) or (FOREIGN_NAMES.get(name, "") in found), (name, hint)
            continue
        written = parse_key(named[1].replace("[]", "[0]"))
        inside, whole = (*path, *written), tuple(written)
        assert "unknown key" not in reason_at(stage, inside) or "unknown key" not in reason_at(
            stage, whole
        ), (
            name,
            hint,
        )


def reason_at(stage: dict[str, Any], key: tuple[str | int, ...]) -> str:
    """Why a key of a run with one stage is refused once it is written; "" if it is not."""
    run: Any = copy.deepcopy(RUN | {"stages": [stage]})
    section = run
    for part, after in itertools.pairwise(key):
        if isinstance(section, list):
            section = section[int(part)]
        else:
            section = section.setdefault(part, [{}] if isinstance(after, int) else {})
    if not isinstance(section, dict):
        return "unknown key"
    section[key[-1]] = section.get(key[-1], 1)
    try:
        build_run(Document(run, "run.yaml"))
    except ConfigError as error:
        wanted = key_text(key)
        return next((each.reason for each in error.problems if each.key == wanted), "")
    return ""


@pytest.mark.parametrize(
    ("stage", "key", "hint"),
    [
        (STAGES[0], "val_size", "which sft and dpo stages measure as eval_dataset"),
        (STAGES[0], "val_dataset", "it is called eval_dataset (val_dataset elsewhere)"),
        (STAGES[0], "eval_strategy", "it is called eval_steps (eval_strategy elsewhere)"),
        (STAGES[0], "evaluation_strategy", "it is called eval_steps"),
        (STAGES[0], "resume_from_checkpoint", "posttrain run FILE --resume"),
        (STAGES[0], "freeze_vit", "it belongs in model.freeze_vision_tower"),
        (STAGES[0], "cutoff_len", "it is called data.max_length"),
        (STAGES[0], "beta", "only dpo stages have it"),
        (STAGES[2], "eval_dataset", "only dpo and sft stages have it"),
        (STAGES[3], "eval_dataset", "only dpo and sft stages have it"),
        (STAGES[3], "kl_loss_coef", "it is called algorithm.kl.coefficient"),
        (STAGES[3], "temperature", "it belongs in rollout.temperature"),
        (STAGES[3], "top_p", "training samples from the whole distribution"),
        (STAGES[3], "entropy_coeff", "no entropy is rewarded"),
        (STAGES[0], "load_in_4bit", "it is called lora.quantization"),
        (STAGES[3], "val_dataset", "it is called eval_dataset, and only dpo and sft stages have it"),
    ],
)
def test_what_is_looked_for_is_told(stage: dict[str, Any], key: str, hint: str) -> None:
    assert hint in hint_at(stage, ("stages", 0), key).replace(
        "sft and dpo stages have it", "dpo and sft stages have it"
    )


def test_a_key_of_another_kind_of_stage_is_not_said_to_belong_here() -> None:
    for name in ALGORITHMS:
        hint = hint_at({"stage": "rl", "algorithm": {"name": name}}, ("stages", 0, "algorithm"), "beta")
        assert hint.startswith("only dpo stages have it; known here: group_size")


def test_a_stage_is_not_sent_to_the_key_of_another_stage_of_the_run() -> None:
    """As the one before, where the run has a stage of the other kind as well, before or after."""
    stages = [
        {"stage": "dpo", "data": DATA, "loss_type": "ipo"},
        {"stage": "rl", "max_steps": 1, "algorithm": {"name": "sapo", "beta": 0.1, "kl_coef": 0.1}},
        {"stage": "sft", "data": DATA, "max_steps": 1, "loss": {"beta": 1}, "group_size": 4},
    ]
    with pytest.raises(ConfigError) as caught:
        build_run(Document(RUN | {"stages": stages}, "run.yaml"))
    hints = {problem.key: problem.remedy for problem in caught.value.problems}
    assert hints["stages[1].algorithm.beta"].startswith("only dpo stages have it")
    assert hints["stages[1].algorithm.kl_coef"].startswith("it is called kl.coefficient")
    assert hints["stages[2].loss.beta"].startswith("only dpo stages have it")
    assert "belongs in" not in hints["stages[2].group_size"]
