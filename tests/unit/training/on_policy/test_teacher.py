"""Learning a teacher's distribution in the learner: what it computes, what it sees, and what it refuses."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional

from posttrain.config import ModelConfig, OnPolicyDistillationStage
from posttrain.media.images import save_image
from posttrain.models.load import load_model
from posttrain.quickstart.tiny import build_tiny
from posttrain.rendering.collation import collate
from posttrain.rendering.rendering import Renderer
from posttrain.training.on_policy.frozen_policy import Beside
from posttrain.training.on_policy.learner import Learner
from posttrain.training.on_policy.teacher import TeacherError
from posttrain.types import Trajectory

SETTINGS: dict[str, Any] = {
    "stage": "on_policy_distillation",
    "teacher": {"stage": "base"},
    "tasks": [{"data": "markers_train"}],
    "group_size": 4,
    "prompts_per_step": 3,
    "max_steps": 10,
    "learning_rate": 1e-3,
    "rollout": {"max_length": 400, "max_new_tokens": 64},
}


def stage_of(**settings: Any) -> OnPolicyDistillationStage:
    return OnPolicyDistillationStage.model_validate(SETTINGS | settings)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the student's family, with other weights."""
    directory = tmp_path_factory.mktemp("teacher")
    build_tiny("qwen3_vl", directory, seed=7)
    return directory


@pytest.fixture
def unrewarded(trajectories: list[Trajectory]) -> list[Trajectory]:
    return [replace(each, advantage=None) for each in trajectories]


def logits(checkpoint: Path, trajectories: Sequence[Trajectory]) -> torch.Tensor:
    """[T, V] logits at the sampled tokens in float64, one episode at a time."""
    renderer = Renderer.from_pretrained(checkpoint, "qwen3_vl")
    model = load_model(checkpoint, dtype="float32")
    found = []
    for each in trajectories:
        with torch.no_grad():
            whole = model(**collate([each], renderer)).logits[0, :-1].double()
        found.append(whole[torch.tensor(each.sampled[1:])])
    return torch.cat(found)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_the_divergence_is_that_of_whole_vocabularies(
    model_config: ModelConfig, tiny_checkpoint: Path, teacher: Path, unrewarded: list[Trajectory], beta: float
) -> None:
    learner = Learner(
        model_config,
        stage_of(loss={"beta": beta}),
        tiny_checkpoint,
        resume=False,
        beside=Beside(tiny_checkpoint, teacher),
    )
    metrics = learner.update(unrewarded, 0)
    p, q = (logits(path, unrewarded).log_softmax(-1) for path in (tiny_checkpoint, teacher))
    if beta in (0.0, 1.0):
        pair = (q, p) if beta else (p, q)
        expected = functional.kl_div(*pair, reduction="none", log_target=True)
    else:
        m = (beta * q.exp() + (1 - beta) * p.exp()).log()
        expected = beta * q.exp() * (q - m) + (1 - beta) * p.exp() * (p - m)
    assert metrics["divergence/teacher"] == pytest.approx(expected.sum(1).mean().item(), rel=1e-4)
    assert metrics["loss"] == pytest.approx(metrics["divergence/teacher"], rel=1e-5)
    again = learner.update(unrewarded, 5)  # the tokens are of an older policy now
    assert again["divergence/teacher"] < metrics["divergence/teacher"]


@pytest.mark.parametrize("lora", [False, True])
def test_a_student_that_is_its_teacher_learns_nothing(
    model_config: ModelConfig, tiny_checkpoint: Path, unrewarded: list[Trajectory], lora: bool
) -> None:
    stage = stage_of(**({"lora": {"rank": 4}} if lora else {}))
    beside = Beside(tiny_checkpoint, tiny_checkpoint)
    learner = Learner(model_config, stage, tiny_checkpoint, resume=False, beside=beside)
    learner.check_teacher(unrewarded)
    metrics = learner.update(unrewarded, 0)
    assert abs(metrics["divergence/teacher"]) < 1e-5
    assert metrics["grad_norm"] < 1e-3


def test_a_teacher_without_the_students_images_is_farther_away(
    model_config: ModelConfig, tiny_checkpoint: Path, unrewarded: list[Trajectory], tmp_path: Path
) -> None:
    beside = Beside(tiny_checkpoint, tiny_checkpoint)
    learner = Learner(model_config, stage_of(), tiny_checkpoint, resume=False, beside=beside)
    assert learner.teacher is not None
    blank = [
        replace(
            each,
            images=[
                replace(image, ref=save_image(_white(image.ref.path), tmp_path)) for image in each.images
            ],
        )
        for each in unrewarded
    ]
    means = []
    for shown in (unrewarded, blank):
        with torch.no_grad(), learner.teacher.of(shown) as taught:
            _, divergences = learner.policy.logprobs_beside(unrewarded, taught.divergence)
        means.append(divergences.abs().mean().item())
    assert means[0] < 1e-5
    assert means[1] > 100 * max(means[0], 1e-6)


def _white(path: str) -> Any:
    with Image.open(path) as image:
        return Image.new("RGB", image.size, "white")


def test_a_broken_way_is_noticed_at_the_start(
    model_config: ModelConfig,
    tiny_checkpoint: Path,
    unrewarded: list[Trajectory],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    beside = Beside(tiny_checkpoint, tiny_checkpoint)
    learner = Learner(model_config, stage_of(), tiny_checkpoint, resume=False, beside=beside)
    whole = learner.policy.logprobs_beside

    def shifted(trajectories: Any, function: Any) -> Any:  # the teacher's states are those of the next token
        found, other = whole(trajectories, function)
        return found, (other[0].roll(1, 0), other[1]) if isinstance(other, tuple) else other

    monkeypatch.setattr(learner.policy, "logprobs_beside", shifted)
    with pytest.raises(TeacherError, match=r"divergence from itself is .* should be 0 within rounding"):
        learner.check_teacher(unrewarded)


def test_rewards_count_beside_the_teacher_by_their_weight(
    model_config: ModelConfig, tiny_checkpoint: Path, trajectories: list[Trajectory]
) -> None:
    """A teacher that is the student leaves the rewards' gradient alone, times their weight."""
    task = {"data": "markers_train", "rewards": ["answer_accuracy"]}
    norms = []
    for weight in (1.0, 0.25):
        algorithm = {"name": "grpo", "group_size": 4, "mini_batches": 1}
        settings = SETTINGS | {"tasks": [task], "reward_weight": weight, "algorithm": algorithm}
        del settings["group_size"]
        stage = OnPolicyDistillationStage.model_validate(settings)
        beside = Beside(tiny_checkpoint, tiny_checkpoint)
        learner = Learner(model_config, stage, tiny_checkpoint, resume=False, beside=beside)
        norms.append(learner.update(list(trajectories), 0)["grad_norm"])
    assert norms[1] == pytest.approx(0.25 * norms[0], rel=1e-3)


def test_the_teacher_may_be_an_adapter_of_the_students_base(
    model_config: ModelConfig, tiny_checkpoint: Path, unrewarded: list[Trajectory], tmp_path: Path
) -> None:
    """One base, two adapters: the teacher's stays what it was, and the student's is what is written."""
    stage = stage_of(lora={"rank": 4}, learning_rate=0.01)
    first = Learner(model_config, stage, tiny_checkpoint, resume=False, beside=Beside(tiny_checkpoint, None))
    for parameter in first.model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(1))
    first.write_checkpoint(tmp_path / "teacher")
    expected = first.score(unrewarded)
    beside = Beside(tiny_checkpoint, tmp_path / "teacher")
    learner = Learner(model_config, stage, tiny_checkpoint, resume=False, beside=beside)
    before = learner.update(unrewarded, 0)
    after = [learner.update(unrewarded, 5) for _ in range(6)][-1]
    assert before["divergence/teacher"] > 1e-4
    assert after["divergence/teacher"] < before["divergence/teacher"]
    assert learner.teacher is not None
    with learner.teacher.of(unrewarded) as taught:
        found = taught.logprobs
    flat = torch.tensor([value for each in expected for value in each])
    torch.testing.assert_close(found, flat, atol=2e-5, rtol=0)
    learner.write_checkpoint(tmp_path / "student")
    assert not list((tmp_path / "student").glob("teacher*"))
    again = Learner(model_config, stage, tmp_path / "student", resume=True, beside=beside)
    for one, other in zip(again.score(unrewarded), learner.score(unrewarded), strict=True):
        assert one == pytest.approx(other, abs=1e-5)
