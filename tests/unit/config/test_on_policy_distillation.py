"""The `on_policy_distillation` stage: one teacher, rewards by weight, and keys without use are refused."""

from typing import Any

import pytest

from posttrain.config import ConfigError, Document, OnPolicyDistillationStage, build_run
from posttrain.config.arithmetic import batch_arithmetic
from posttrain.config.fitting import model_load
from posttrain.config.memory import learner_memory
from posttrain.config.shapes import model_shape

TEACHER = {"checkpoint": "Qwen/Qwen3-VL-8B-Instruct"}
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
