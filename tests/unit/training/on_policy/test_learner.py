import copy
import math
from pathlib import Path
from statistics import fmean

import pytest
import torch

from posttrain.config import ModelConfig, RlStage
from posttrain.training.core.update_guard import NonFiniteUpdates
from posttrain.training.on_policy.agreement import PolicyMismatch
from posttrain.training.on_policy.learner import Learner
from posttrain.types import Trajectory


@pytest.fixture
def learner(model_config: ModelConfig, stage: RlStage, tiny_checkpoint: Path) -> Learner:
    return Learner(model_config, stage, tiny_checkpoint, resume=False)


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in learner.model.state_dict().items()}


def test_an_update_moves_the_policy_towards_the_better_answers(
    learner: Learner, trajectories: list[Trajectory]
):
    metrics = learner.update(trajectories)
    assert metrics["logprob_gap/max"] < 1e-5
    assert metrics["update/skipped"] == 0
    assert metrics["kl/old_new"] == pytest.approx(0, abs=1e-9)  # one mini-batch: measured on-policy
    assert metrics["gate/pos_p50"] == pytest.approx(1)
    towards = 0.0
    for trajectory, after in zip(trajectories, learner.score(trajectories), strict=True):
        before = [p for p, sampled in zip(trajectory.logprobs, trajectory.sampled, strict=True) if sampled]
        towards += (trajectory.advantage or 0) * (fmean(after) - fmean(before))
    assert towards > 0


def test_checkpointing_activations_changes_nothing(
    model_config: ModelConfig, stage: RlStage, tiny_checkpoint: Path, trajectories: list[Trajectory]
):
    learned = []
    for checkpointing in (False, True):
        settings = stage.model_copy(update={"gradient_checkpointing": checkpointing})
        learner = Learner(model_config, settings, tiny_checkpoint, resume=False)
        assert learner.model.is_gradient_checkpointing is checkpointing
        learner.update(trajectories)
        learned.append(weights(learner))
    plain, checkpointed = learned
    for name, value in plain.items():
        torch.testing.assert_close(checkpointed[name], value, rtol=0, atol=1e-6)


def test_muon_trains_and_resumes_like_adamw(
    model_config: ModelConfig,
    stage: RlStage,
    tiny_checkpoint: Path,
    trajectories: list[Trajectory],
    tmp_path: Path,
):
    settings = stage.model_copy(update={"optimizer": "muon"})
    learner = Learner(model_config, settings, tiny_checkpoint, resume=False)
    before = weights(learner)
    learner.update(trajectories)
    learner.write_checkpoint(tmp_path / "checkpoint-1")
    assert any(not torch.equal(before[name], value) for name, value in weights(learner).items())
    resumed = Learner(model_config, settings, tmp_path / "checkpoint-1", resume=True)
    again = copy.deepcopy(trajectories)
    resumed.tolerance = learner.tolerance = math.inf  # the same episodes, which are an older policy's now
    for each in (learner, resumed):
        each.update(again)
    ours, theirs = weights(learner), weights(resumed)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_frozen_parts_stay(learner: Learner, trajectories: list[Trajectory]):
    before = weights(learner)
    learner.update(trajectories)
    after = weights(learner)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("language_model" in name for name in moved)
    assert not any("visual.blocks" in name for name in moved)


def test_sampling_from_other_weights_is_refused(learner: Learner, trajectories: list[Trajectory]):
    stale = copy.deepcopy(trajectories)
    place = stale[0].sampled.index(True)
    stale[0].logprobs[place] += 2e-4
    before = weights(learner)
    with pytest.raises(PolicyMismatch, match=r"differ by (1\.9|2\.0).e-04.*publish"):
        learner.update(stale)
    assert all(torch.equal(before[name], value) for name, value in weights(learner).items())


def test_updates_that_are_not_finite_are_skipped_and_then_stop_the_run(
    learner: Learner, trajectories: list[Trajectory]
):
    broken = copy.deepcopy(trajectories)
    broken[5].advantage = math.inf
    before = weights(learner)
    for _ in range(learner.stage.max_skipped_updates - 1):
        assert learner.update(broken)["update/skipped"] == 1
    with pytest.raises(NonFiniteUpdates, match=r"visual\.merger"):
        learner.update(broken)
    assert all(torch.equal(before[name], value) for name, value in weights(learner).items())


@pytest.mark.parametrize("with_state", [True, False])
def test_a_resumed_learner_goes_on_bit_for_bit(
    learner: Learner,
    model_config: ModelConfig,
    stage: RlStage,
    trajectories: list[Trajectory],
    tmp_path: Path,
    with_state: bool,
):
    """And, as the negative control, it does not where the optimiser's state is left out."""
    learner.update(trajectories)
    learner.write_checkpoint(tmp_path / "checkpoint-1")
    resumed = Learner(model_config, stage, tmp_path / "checkpoint-1", resume=with_state)
    again = copy.deepcopy(trajectories)
    for each in (learner, resumed):
        _refresh(each, again)
        each.update(again)
    first, second = weights(learner), weights(resumed)
    assert all(torch.equal(first[name], second[name]) for name in first) == with_state


def _refresh(learner: Learner, trajectories: list[Trajectory]) -> None:
    """Give the trajectories the log-probs that an engine with these weights would report."""
    for trajectory, logprobs in zip(trajectories, learner.score(trajectories), strict=True):
        values = iter(logprobs)
        trajectory.logprobs = [next(values) if sampled else 0.0 for sampled in trajectory.sampled]
