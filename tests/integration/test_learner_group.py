"""Learners as Ray actors: one rank or two, the same policy."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from posttrain.config import ModelConfig, OnPolicyDistillationStage, RlStage
from posttrain.quickstart.tiny import build_tiny
from posttrain.training.on_policy.frozen_policy import Beside
from posttrain.training.on_policy.learner_group import LearnerGroup
from posttrain.types import Trajectory
from tests.unit.training.conftest import model_config, stage, trajectories  # noqa: F401


@pytest.mark.usefixtures("ray_cluster")
def test_two_ranks_learn_what_one_learns(
    model_config: ModelConfig,  # noqa: F811
    stage: RlStage,  # noqa: F811
    trajectories: list[Trajectory],  # noqa: F811
    tiny_checkpoint: Path,
    tmp_path: Path,
):
    learned, scores = [], []
    for ranks in (1, 2):
        settings = RlStage.model_validate(
            stage.model_dump(exclude={"global_batch_size"}) | {"num_workers": ranks}
        )
        group = LearnerGroup(model_config, settings, tiny_checkpoint, resume=False, use_gpu=False)
        try:
            scores.append(group.score(trajectories[:2]))  # by the first rank alone, before all of them learn
            metrics = group.update(trajectories)
            group.write_checkpoint(tmp_path / str(ranks))
        finally:
            group.close()
        learned.append((metrics, load_file(tmp_path / str(ranks) / "model.safetensors")))
    for first, second in zip(*scores, strict=True):
        assert second == pytest.approx(first, abs=1e-5)
    (one, weights_of_one), (two, weights_of_two) = learned
    for name in ("loss", "grad_norm", "entropy"):
        assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-7)
    # AdamW's first step is ±learning_rate wherever the gradient is not zero, so tiny gradients may differ.
    for name, value in weights_of_one.items():
        torch.testing.assert_close(weights_of_two[name], value, atol=2.1 * stage.learning_rate, rtol=0)
    same = [torch.isclose(weights_of_two[n], v, atol=1e-6).float().mean() for n, v in weights_of_one.items()]
    assert torch.stack(same).mean() > 0.99


@pytest.mark.usefixtures("ray_cluster")
def test_two_ranks_learn_from_a_teacher_what_one_does(
    model_config: ModelConfig,  # noqa: F811
    trajectories: list[Trajectory],  # noqa: F811
    tiny_checkpoint: Path,
    tmp_path: Path,
):
    """The teacher is sharded by layer as the student is, and its head is whole where it is needed."""
    build_tiny("qwen3_vl", tmp_path / "teacher", seed=7)
    learned = []
    for ranks in (1, 2):
        settings = OnPolicyDistillationStage.model_validate(
            {
                "stage": "on_policy_distillation",
                "teacher": {"stage": "base"},
                "tasks": [{"data": "markers_train"}],
                "prompts_per_step": 3,
                "max_steps": 2,
                "num_workers": ranks,
                "rollout": {"max_length": 400, "max_new_tokens": 64},
            }
            | ({"sharding": "fsdp2"} if ranks == 2 else {})
        )
        group = LearnerGroup(
            *(model_config, settings, tiny_checkpoint),
            resume=False,
            use_gpu=False,
            beside=Beside(tiny_checkpoint, tmp_path / "teacher"),
        )
        try:
            group.check_teacher(trajectories[:2])
            learned.append(group.update(trajectories, 0))
        finally:
            group.close()
    one, two = learned
    for name in ("loss", "divergence/teacher", "kl/teacher", "grad_norm"):
        assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-6)
