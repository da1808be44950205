"""A teacher in engines, in the learner: what its readings teach, and which of them are refused."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from posttrain.config import ModelConfig, OnPolicyDistillationStage
from posttrain.inference.reading import Reading, ReadingError
from posttrain.quickstart.tiny import build_tiny, initialise
from posttrain.training.on_policy import engine_teacher
from posttrain.training.on_policy.engine_teacher import read_by
from posttrain.training.on_policy.frozen_policy import Beside
from posttrain.training.on_policy.learner import Learner
from posttrain.training.on_policy.teacher import TeacherError
from posttrain.types import Trajectory

#: More than the tiny vocabulary has: every token is told apart.
ALL = 1024
TOLD = ("loss", "divergence/teacher", "kl/teacher", "grad_norm")


def stage_of(place: str = "engines", top: int = ALL, **settings: Any) -> OnPolicyDistillationStage:
    given = {
        "stage": "on_policy_distillation",
        "teacher": {"stage": "base", "place": place},
        "loss": settings.pop("loss", {"beta": 0.5}) | ({"top_k": top} if place == "engines" else {}),
        "tasks": [{"data": "markers_train"}],
        "group_size": 4,
        "prompts_per_step": 3,
        "max_steps": 10,
        "learning_rate": 1e-3,
        "rollout": {"max_length": 400, "max_new_tokens": 64},
    }
    return OnPolicyDistillationStage.model_validate(given | settings)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the student's family, twice as wide, with one layer more."""
    directory = tmp_path_factory.mktemp("teacher")
    build_tiny("qwen3_vl", directory, seed=7)
    config = AutoConfig.from_pretrained(directory)
    text = config.text_config
    for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
        setattr(text, name, 2 * getattr(text, name))
    text.num_hidden_layers += 1
    config.vision_config.out_hidden_size = text.hidden_size
    torch.manual_seed(7)
    model: Any = AutoModelForImageTextToText.from_config(config)
    initialise(model)
    model.save_pretrained(directory)
    return directory


@pytest.fixture
def unrewarded(trajectories: list[Trajectory]) -> list[Trajectory]:
    return [replace(each, advantage=None) for each in trajectories]


@pytest.fixture
def reader(model_config: ModelConfig, teacher: Path) -> Learner:
    """The teacher, which reads as engines do."""
    return Learner(model_config, stage_of(), teacher, resume=False)


def readings(reader: Learner, trajectories: Sequence[Trajectory], top: int = ALL) -> list[Reading]:
    return [reading for each in trajectories for reading in read_by(reader.policy, [each], top)]


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_all_tokens_teach_what_a_teacher_in_the_learners_does_and_fewer_less(
    model_config: ModelConfig,
    tiny_checkpoint: Path,
    teacher: Path,
    reader: Learner,
    unrewarded: list[Trajectory],
    beta: float,
) -> None:
    told = {}
    for place in ("learners", "engines"):
        beside = Beside(tiny_checkpoint, teacher if place == "learners" else None)
        stage = stage_of(place, loss={"beta": beta})
        learner = Learner(model_config, stage, tiny_checkpoint, resume=False, beside=beside)
        told[place] = learner.update(unrewarded, 0, readings(reader, unrewarded))
        told[f"{place} again"] = learner.update(unrewarded, 5, readings(reader, unrewarded))
    for name in TOLD:
        assert told["engines"][name] == pytest.approx(told["learners"][name], rel=2e-4, abs=1e-6)
    assert told["engines again"]["divergence/teacher"] < told["engines"]["divergence/teacher"]
    assert "time/teacher" not in told["engines"]  # it read before
    few = Learner(model_config, stage_of(top=4, loss={"beta": beta}), tiny_checkpoint, resume=False)
    found = few.update(unrewarded, 0, readings(reader, unrewarded, top=4))
    assert 0 < found["divergence/teacher"] < told["engines"]["divergence/teacher"]
    assert found["kl/teacher"] == pytest.approx(told["engines"]["kl/teacher"], rel=1e-4)


@pytest.mark.parametrize("top", [4, ALL])
def test_a_student_that_is_its_teacher_learns_nothing(
    model_config: ModelConfig, tiny_checkpoint: Path, unrewarded: list[Trajectory], top: int
) -> None:
    learner = Learner(model_config, stage_of(top=top, lora={"rank": 4}), tiny_checkpoint, resume=False)
    own = readings(learner, unrewarded, top)
    learner.check_teacher(unrewarded, own)
    metrics = learner.update(unrewarded, 0, own)
    assert abs(metrics["divergence/teacher"]) < 1e-5
    assert metrics["grad_norm"] < 1e-3


def test_a_broken_way_is_noticed_at_the_start(
    model_config: ModelConfig,
    tiny_checkpoint: Path,
    reader: Learner,
    unrewarded: list[Trajectory],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learner = Learner(model_config, stage_of(top=8), tiny_checkpoint, resume=False)
    given = readings(reader, unrewarded, 8)
    whole = engine_teacher.candidate_logprobs

    def shifted(hidden: Any, *others: Any) -> Any:  # the student's states are those of the next token
        return whole(hidden.roll(1, 0), *others)

    monkeypatch.setattr(engine_teacher, "candidate_logprobs", shifted)
    with pytest.raises(TeacherError, match=r"divergence from itself is .* should be 0 within rounding"):
        learner.check_teacher(unrewarded, given)


def test_tokens_that_the_student_has_not_count_among_the_rest(
    model_config: ModelConfig, tiny_checkpoint: Path, reader: Learner, unrewarded: list[Trajectory]
) -> None:
    """A larger model's head may be padded further."""
    learner = Learner(model_config, stage_of(top=4), tiny_checkpoint, resume=False)
    found = []
    for unknown in (False, True):
        given = readings(reader, unrewarded, 4)
        for each in given:
            if unknown:
                each.ids[:, 3] = 10**6
            else:  # it is left out
                each.logprobs[:, 3] = -np.inf
                each.ids[:, 3] = each.ids[:, 0]
        found.append(learner.update(unrewarded, 0, given)["divergence/teacher"])
        learner = Learner(model_config, stage_of(top=4), tiny_checkpoint, resume=False)
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def damaged(kind: str, given: list[Reading]) -> list[Reading]:
    """Return readings with one fault, in the second of them."""
    second = given[1]
    narrow = replace(second, ids=second.ids[:, :2], logprobs=second.logprobs[:, :2])
    return {
        "missing": given[:-1],
        "swapped": [given[0], given[2], given[1], *given[3:]],
        "short": [given[0], replace(second, ids=second.ids[:-1]), *given[2:]],
        "narrow": [given[0], narrow, *given[2:]],
        "not finite": [given[0], replace(second, sampled=np.full_like(second.sampled, np.nan)), *given[2:]],
        "too likely": [given[0], replace(second, logprobs=np.zeros_like(second.logprobs)), *given[2:]],
    }[kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "read 11 of 12 episodes"),
        ("swapped", "of other tokens or images"),
        ("short", "has shapes"),
        ("narrow", "several widths"),
        ("not finite", "no distribution"),
        ("too likely", "no distribution"),
    ],
)
def test_what_was_not_read_of_an_episode_is_never_learned(
    model_config: ModelConfig,
    tiny_checkpoint: Path,
    reader: Learner,
    unrewarded: list[Trajectory],
    kind: str,
    message: str,
) -> None:
    learner = Learner(model_config, stage_of(top=4), tiny_checkpoint, resume=False)
    before = [parameter.detach().clone() for parameter in learner.model.parameters()]
    with pytest.raises(ReadingError, match=message):
        learner.update(unrewarded, 0, damaged(kind, readings(reader, unrewarded, 4)))
    for was, now in zip(before, learner.model.parameters(), strict=True):
        assert torch.equal(was, now)
