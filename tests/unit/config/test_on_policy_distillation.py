"""The `on_policy_distillation` stage: one teacher, rewards by weight, and keys without use are refused."""

from typing import Any

import pytest

from posttrain.config import ConfigError, Document, OnPolicyDistillationStage, build_run
from posttrain.config.arithmetic import batch_arithmetic
from posttrain.config.fitting import memory_rows, model_load, stage_misfits
from posttrain.config.host_memory import Host, host_processes
from posttrain.config.memory import learner_memory
from posttrain.config.shapes import model_shape

TEACHER = {"checkpoint": "Qwen/Qwen3-VL-8B-Instruct"}
ENGINES = TEACHER | {"place": "engines"}
SAPO = {"name": "sapo", "group_size": 8, "mini_batches": 2}
TASK = {"data": "markers_prompts"}
REWARDED = TASK | {"rewards": ["answer_accuracy"]}


def run_of(**stage: Any) -> dict[str, Any]:
    given = {"stage": "on_policy_distillation", "max_steps": 3, "tasks": [TASK], "teacher": TEACHER}
    return {
        "name": "test",
        "model": {"name_or_path": "Qwen/Qwen3-VL-2B-Instruct"},
        "stages": [given | stage],
    }


def build(**stage: Any) -> OnPolicyDistillationStage:
    found = build_run(Document(run_of(**stage), "run.yaml")).stages[0]
    assert isinstance(found, OnPolicyDistillationStage)
    return found


@pytest.mark.parametrize(
    ("stage", "key", "reason"),
    [
        ({"teacher": {}}, "teacher.checkpoint", "and there is none"),
        ({"teacher": TEACHER | {"stage": "base"}}, "teacher.checkpoint", "these are checkpoint and stage"),
        ({"teacher": {"checkpoint": "/nowhere"}}, "teacher.checkpoint", "no directory /nowhere"),
        ({"teacher": {"checkpoint": "gpt2"}}, "teacher.checkpoint", "does not tell its family"),
        ({"teacher": {"stage": "sft"}}, "teacher.stage", "no 'sft' before this stage"),
        ({"loss": {"beta": 1.5}}, "loss.beta", "1"),
        ({"loss": {"top_k": 8}}, "loss.top_k", "over the whole vocabulary"),
        ({"teacher": ENGINES, "loss": {"top_k": 0}}, "loss.top_k", "1"),
        ({"teacher": TEACHER | {"actors": 2}}, "teacher.actors", "the teacher is in the learners"),
        ({"teacher": TEACHER | {"engine": {}}}, "teacher.engine", "the teacher is in the learners"),
        ({"teacher": ENGINES, "rollout": {"temperature": 0.8}}, "rollout.temperature", "temperature 1"),
        ({"reward_weight": 0.5}, "reward_weight", "no objective says"),
        ({"algorithm": SAPO}, "algorithm", "nothing is learned from rewards"),
        ({"algorithm": SAPO, "reward_weight": 1.0}, "tasks[0].rewards", "there is none"),
        (
            {"algorithm": SAPO, "reward_weight": 1.0, "tasks": [REWARDED], "group_size": 4},
            "group_size",
            "algorithm.group_size says it",
        ),
        ({"global_batch_size": 4}, "global_batch_size", "prompts_per_step"),
        ({"prompts_per_step": 5, "mini_batches": 2}, "prompts_per_step", "split evenly"),
    ],
)
def test_what_does_not_fit_is_named(stage: dict[str, Any], key: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(**stage)
    assert f"stages[0].{key}" in str(caught.value)
    assert reason in str(caught.value)


def test_episodes_follow_the_objective_where_rewards_are_learned_from() -> None:
    plain = build(group_size=2, prompts_per_step=6)
    assert (plain.episodes_per_step, plain.updates_per_step, plain.rewarded) == (12, 1, set())
    mixed = build(algorithm=SAPO, reward_weight=0.5, tasks=[REWARDED], prompts_per_step=6)
    assert (mixed.episodes_per_step, mixed.updates_per_step) == (48, 2)
    assert mixed.rewarded == {"markers_prompts"}


def test_the_arithmetic_says_what_the_teacher_reads() -> None:
    document = Document(run_of(group_size=2, prompts_per_step=6, loss={"beta": 0.0}), "run.yaml")
    told = dict(batch_arithmetic(build_run(document)))
    assert told["on_policy_distillation: episodes a step"] == "6 prompts × 2 = 12"
    assert "reads 36 episodes" in told["on_policy_distillation: teacher"]
    assert "forward divergence" in told["on_policy_distillation: teacher"]


def test_a_learner_holds_its_teacher() -> None:
    """A larger teacher takes its own bytes, an earlier stage the model's, and a base under LoRA none."""
    run = build_run(Document(run_of(), "run.yaml"))
    shape = model_shape(run.model)
    assert shape is not None
    load = model_load(run.model, shape)

    def fixed(**stage: Any) -> float:
        return learner_memory(load, build(**stage).load()).certain["fixed weights"]

    own = fixed(teacher={"stage": "base"})
    larger = fixed()
    assert larger - own == pytest.approx(2 * (8.77e9 - shape.parameters), rel=0.05)
    adapted = {"lora": {"rank": 8}, "teacher": {"stage": "base"}}
    assert fixed(**adapted) - fixed(**adapted, start_from="base") == 2 * shape.parameters


def test_a_teacher_in_engines_takes_gpus_of_its_own_and_none_of_a_learners_memory() -> None:
    two = ENGINES | {"actors": 2, "engine": {"tensor_parallel_size": 2}}
    stage = build(teacher=two, num_workers=2)
    assert (stage.gpus(shared=False), stage.gpus(shared=True), build().gpus(shared=False)) == (7, 6, 2)
    assert (stage.teacher_top_k, build().teacher_top_k) == (64, 0)
    run = run_of(teacher=two, num_workers=2) | {"cluster": {"num_gpus": 6}}
    with pytest.raises(ConfigError, match=r"2 num_workers \+ 1 rollout.actors \+ 2 teacher.actors.* 7 GPUs"):
        build_run(Document(run, "run.yaml"))
    assert build_run(Document(run | {"cluster": {"num_gpus": 7}}, "run.yaml"))
    shared = run_of(teacher=two) | {"cluster": {"num_gpus": 5, "placement": "shared"}}
    assert build_run(Document(shared, "run.yaml"))  # engines and learners share one, the teacher has four
    built = build_run(Document(run_of(), "run.yaml"))
    shape = model_shape(built.model)
    assert shape is not None
    load = model_load(built.model, shape)
    beside, alone = (learner_memory(load, build(teacher=each).load()) for each in (TEACHER, ENGINES))
    assert beside.certain["fixed weights"] - alone.certain["fixed weights"] > 2 * 8e9
    rows = dict(memory_rows(build_run(Document(run_of(teacher=two), "run.yaml"))))
    [told] = [text for name, text in rows.items() if "each of 2 engines of the teacher" in name]
    assert "8.2 GiB of them weights" in told  # half of 8.77 B in bfloat16
    misfits = stage_misfits(load, build(teacher=ENGINES), card=16 * 2**30, gpus=3)
    assert any(misfit.key == ("teacher", "engine") for misfit in misfits)
    document = Document(run_of(teacher=two), "run.yaml")
    assert (
        "over its top 64; engines of its own: 2"
        in dict(batch_arithmetic(build_run(document)))["on_policy_distillation: teacher"]
    )


def test_a_teachers_engines_take_host_memory() -> None:
    host = Host(64 * 2**30, 2**30)
    on_cpu = {"cluster": {"num_gpus": 0}}
    for teacher, count in ((TEACHER, 0), (ENGINES | {"actors": 3}, 3)):
        run = build_run(Document(run_of(teacher=teacher) | on_cpu, "run.yaml"))
        shape = model_shape(run.model)
        assert shape is not None
        found = host_processes(run, run.stages[0], model_load(run.model, shape), host)
        engines = [each for each in found if each.name == "engine of the teacher"]
        assert sum(each.count for each in engines) == count
        assert all(each.parts["weights and cache"] > 2 * 8e9 for each in engines)
