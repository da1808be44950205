"""Options of the objective, in the learner: against straight loops, on any ranks and rows."""

import copy
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from posttrain.config import ModelConfig, RlStage
from posttrain.models.load import load_model
from posttrain.rendering.collation import collate
from posttrain.rendering.rendering import Renderer
from posttrain.training.on_policy.agreement import PolicyMismatch
from posttrain.training.on_policy.frozen_policy import Beside
from posttrain.training.on_policy.learner import Learner
from posttrain.types import Trajectory
from tests.unit.ranks import on_two_ranks

TEMPERATURE = 0.7


def make(stage: RlStage, checkpoint: Path, origin: Path | None = None, **settings: Any) -> Learner:
    """Make a learner whose algorithm has some other settings, and its stage too."""
    algorithm = settings.pop("algorithm", {})
    told = stage.model_dump(exclude_unset=True)
    told |= {"algorithm": told["algorithm"] | algorithm} | settings
    config = ModelConfig(family="qwen3_vl", dtype="float32")
    beside = Beside(origin or checkpoint)
    return Learner(config, RlStage.model_validate(told), checkpoint, resume=False, beside=beside)


def gradients(learner: Learner, trajectories: list[Trajectory]) -> dict[str, torch.Tensor]:
    """Return the gradient of an update that is not made."""
    found: dict[str, torch.Tensor] = {}

    def step(loss_is_finite: bool = True) -> float:
        for name, parameter in learner.model.named_parameters():
            if parameter.grad is not None:
                gradient = parameter.grad
                found[name] = (gradient.full_tensor() if isinstance(gradient, DTensor) else gradient).clone()
        return 1.0

    learner.updates.step = step
    learner.tolerance = math.inf
    learner.update(copy.deepcopy(trajectories))
    return found


def straight_logprobs(
    model: Any, renderer: Renderer, episode: Trajectory, temperature: float = 1.0
) -> torch.Tensor:
    """Compute the log-probs of an episode's sampled tokens from all logits, in float64."""
    logits = model(**collate([episode], renderer)).logits[0].double() / temperature
    ids, sampled = torch.tensor(episode.token_ids), torch.tensor(episode.sampled)
    return logits.log_softmax(-1)[:-1].gather(-1, ids[1:, None])[:, 0][sampled[1:]]


@pytest.fixture(scope="module")
def moved(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that are a little off those of the stage's start."""
    folder = tmp_path_factory.mktemp("checkpoints") / "moved"
    shutil.copytree(tiny_checkpoint, folder)
    model: Any = load_model(tiny_checkpoint, dtype="float32")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("place", ["loss", "reward"])
@pytest.mark.parametrize("mean", ["sequence", "token", "constant"])
def test_a_reference_is_the_start_of_the_stage(
    place: str, mean: str, stage: RlStage, moved: Path, tiny_checkpoint: Path, trajectories: list[Trajectory]
) -> None:
    beta = 0.3
    cut, kept = copy.deepcopy(trajectories[5]), copy.deepcopy(trajectories)
    kept[5] = cut
    cut.stop_reason = "max_tokens"
    algorithm = {
        "name": "grpo",
        "loss_normalization": mean,
        "mask_truncated": True,
        "importance_cap": 1e9,
        "kl": {"coefficient": beta, "place": place},
    }
    learner = make(stage, moved, tiny_checkpoint, algorithm=algorithm)
    found = gradients(learner, kept)

    renderer = learner.renderer
    model: Any = load_model(moved, dtype="float32", freeze_vision_tower=True)
    reference: Any = load_model(tiny_checkpoint, dtype="float32")
    counts = [sum(each.sampled) for each in kept if each is not cut]
    sizes = {"sequence": len(kept), "token": sum(counts), "constant": len(kept) * 64}
    for episode in kept:
        if episode is cut:
            continue
        logprobs = straight_logprobs(model, renderer, episode)
        with torch.no_grad():
            fixed = straight_logprobs(reference, renderer, episode)
        weights = (logprobs.detach() - torch.tensor(episode.logprobs)[torch.tensor(episode.sampled)]).exp()
        advantages = torch.full_like(logprobs, episode.advantage or 0.0)
        if place == "reward":
            advantages -= beta * (logprobs.detach() - fixed)
            losses = -weights * advantages * logprobs
        else:
            k3 = (fixed - logprobs).exp() - 1 - (fixed - logprobs)
            losses = -weights * advantages * logprobs + beta * k3
        (losses.sum() / sizes[mean] / (len(losses) if mean == "sequence" else 1)).backward()
    expected = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    assert expected.keys() <= found.keys()
    total = math.sqrt(sum(each.double().square().sum().item() for each in expected.values()))
    for name, each in expected.items():
        assert (found[name] - each).norm() <= 2e-5 * max(each.norm().item(), total / 100), name


def test_a_reference_holds_the_policy_where_no_reward_tells_anything(
    stage: RlStage, moved: Path, tiny_checkpoint: Path, trajectories: list[Trajectory]
) -> None:
    alike = copy.deepcopy(trajectories)
    for each in alike:
        each.advantage = 0.0
    kl: Any = {"algorithm": {"kl": {"coefficient": 1.0}}, "learning_rate": 1e-4}
    learner = make(stage, moved, tiny_checkpoint, **kl)
    learner.tolerance = math.inf
    first = learner.update(alike)["kl/reference"]
    learner.update(alike)
    assert 0 < learner.update(alike)["kl/reference"] < first
    at_start = make(stage, tiny_checkpoint, **kl)
    assert at_start.update(copy.deepcopy(trajectories))["kl/reference"] == pytest.approx(0, abs=1e-9)


def test_adapters_have_the_base_as_their_reference(
    stage: RlStage, tiny_checkpoint: Path, trajectories: list[Trajectory]
) -> None:
    adapters = {"lora": {"rank": 2}, "algorithm": {"kl": {"coefficient": 0.1}}}
    learner = make(stage, tiny_checkpoint, **adapters)
    learner.tolerance = math.inf
    assert learner.update(copy.deepcopy(trajectories))["kl/reference"] == pytest.approx(0, abs=1e-9)
    assert learner.update(copy.deepcopy(trajectories))["kl/reference"] > 0


def test_a_step_without_any_signal_is_compared_and_measured(
    stage: RlStage, tiny_checkpoint: Path, trajectories: list[Trajectory]
) -> None:
    alike = copy.deepcopy(trajectories)
    for each in alike:
        each.advantage = 0.0
    learner = make(stage, tiny_checkpoint)
    metrics = learner.update(alike)
    assert metrics["entropy"] == pytest.approx(
        learner.update(copy.deepcopy(trajectories))["entropy"], rel=0.2
    )
    assert 0 < metrics["logprob_gap/max"] < 1e-5
    assert metrics["loss"] == 0
    again = make(stage, tiny_checkpoint)
    alike[0].logprobs[alike[0].sampled.index(True)] += 1e-3
    with pytest.raises(PolicyMismatch):
        again.update(alike)


def test_truncated_episodes_are_counted_and_not_learned(
    stage: RlStage, tiny_checkpoint: Path, trajectories: list[Trajectory]
) -> None:
    cut = copy.deepcopy(trajectories)
    cut[0].stop_reason = cut[5].stop_reason = "max_turns"
    masking = make(stage, tiny_checkpoint, algorithm={"mask_truncated": True})
    metrics = masking.update(cut)
    assert metrics["episode/masked"] == 2
    assert "episode/masked" not in make(stage, tiny_checkpoint).update(cut)


def test_another_temperature_is_that_of_policy_ratios_and_engine(
    stage: RlStage, tiny_checkpoint: Path, trajectories: list[Trajectory]
) -> None:
    """The engine draws from the tempered distribution without banned tokens, and says its log-probs."""
    rollout = stage.rollout.model_dump(exclude_unset=True) | {"temperature": TEMPERATURE}
    learner = make(stage, tiny_checkpoint, rollout=rollout)
    model: Any = load_model(tiny_checkpoint, dtype="float32")
    drawn = copy.deepcopy(trajectories)
    entropies: list[float] = []
    for episode in drawn:
        with torch.no_grad():
            logits = model(**collate([episode], learner.renderer)).logits[0].double()[:-1] / TEMPERATURE
        whole = logits.log_softmax(-1)
        banned = logits.clone()
        banned[:, learner.renderer.banned_token_ids] = -torch.inf
        ids = torch.tensor(episode.token_ids)[1:, None]
        told = banned.log_softmax(-1).gather(-1, ids)[:, 0].tolist()
        sampled = episode.sampled
        episode.logprobs = [p if s else 0.0 for p, s in zip([0.0, *told], sampled, strict=True)]
        entropies += (-(whole.exp() * whole).sum(-1))[torch.tensor(sampled[1:])].tolist()
    metrics = learner.update(copy.deepcopy(drawn))
    assert metrics["logprob_gap/max"] < 1e-5
    assert metrics["entropy"] == pytest.approx(sum(entropies) / len(entropies), rel=1e-4)
    kept = [value for each in drawn for value in learner.entropies[each.group, each.episode].tolist()]
    assert kept == pytest.approx(entropies, rel=1e-3)  # of every token, in half precision
    with pytest.raises(PolicyMismatch):  # what an engine says at temperature 1 is of another policy
        make(stage, tiny_checkpoint, rollout=rollout).update(copy.deepcopy(trajectories))
    with pytest.raises(PolicyMismatch):
        make(stage, tiny_checkpoint).update(drawn)


WAYS: tuple[dict[str, Any], ...] = (
    {"name": "grpo", "loss_normalization": "token", "mask_truncated": True, "kl": {"coefficient": 0.1}},
    {"name": "cispo", "kl": {"coefficient": 0.1, "place": "reward"}},
)


def one_rank(rank: int, stage: RlStage, checkpoint: Path, episodes: list[Trajectory], folder: Path) -> None:
    """Be one of two ranks, whose rows are shorter than those of one alone."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for number, algorithm in enumerate(WAYS):
        learner = make(
            stage, checkpoint, algorithm=algorithm, num_workers=2, sharding="fsdp2", max_batch_tokens=400
        )
        learner.tolerance = math.inf
        metrics = learner.update(copy.deepcopy(episodes))
        if rank == 0:
            torch.save(metrics, folder / f"{number}.pt")
    dist.destroy_process_group()


@pytest.mark.timeout(200)
def test_any_rows_and_ranks_learn_the_same(
    stage: RlStage, tiny_checkpoint: Path, trajectories: list[Trajectory], tmp_path: Path
) -> None:
    episodes = copy.deepcopy(trajectories)
    episodes[1].stop_reason = episodes[9].stop_reason = "max_tokens"
    on_two_ranks(one_rank, stage, tiny_checkpoint, episodes, tmp_path)
    for number, algorithm in enumerate(WAYS):
        alone = make(stage, tiny_checkpoint, algorithm=algorithm, max_batch_tokens=10_000)
        alone.tolerance = math.inf
        expected = alone.update(copy.deepcopy(episodes))
        found = torch.load(tmp_path / f"{number}.pt")
        assert found.keys() == expected.keys()
        for name in expected:
            if not name.startswith(("time/", "class_gap", "logprob_gap", "kl/")):
                assert found[name] == pytest.approx(expected[name], rel=2e-4, abs=1e-7), name
