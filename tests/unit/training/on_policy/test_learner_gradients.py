"""The gradient of a step is that of a straight loop, however the episodes are dealt to rows and ranks."""

import copy
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import PeftModel
from PIL import Image
from torch import Tensor
from torch.distributed.tensor import DTensor

from posttrain.config import ModelConfig, RlStage
from posttrain.config.lora import LoraConfig
from posttrain.media.images import save_image
from posttrain.models.load import load_model
from posttrain.models.lora import with_lora
from posttrain.rendering.collation import collate
from posttrain.rendering.rendering import Renderer
from posttrain.training.on_policy.learner import Learner
from posttrain.types import Block, Message, Trajectory, text_message
from tests.unit.ranks import on_ranks

#: Images of the prompt of each group, and the advantages of its episodes; the third has no signal.
GROUPS = (
    (1, (1.0, -0.5, -0.5)),
    (0, (-1.0, 0.4, 0.6)),
    (3, (0.0, 0.0, 0.0)),
    (3, (0.7, -0.7)),
    (0, (1.1, -1.1)),
)
LONGEST = 256


@dataclass(frozen=True)
class Way:
    """How a gradient is computed."""

    max_length: int = LONGEST
    max_batch_tokens: int | None = None
    sharding: str = "none"
    lora: bool = False
    tower: bool = False
    algorithm: str = "sapo"


@pytest.fixture(scope="module")
def episodes(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Trajectory]:
    """Episodes with none, one and three images, of different lengths, with log-probs off by a little."""
    renderer = Renderer.from_pretrained(tiny_checkpoint, "qwen3_vl")
    folder = tmp_path_factory.mktemp("images")
    made: list[Trajectory] = []
    for group, (images, advantages) in enumerate(GROUPS):
        sizes = [(48 + 32 * (place + group), 64) for place in range(images)]
        shown = [
            save_image(Image.new("RGB", size, (40 * place, 90 * group % 255, 120)), folder)
            for place, size in enumerate(sizes)
        ]
        blocks = [*(Block("image", image=each) for each in shown), Block("text", text=f"Which? {group}")]
        for episode, advantage in enumerate(advantages):
            answer = text_message("assistant", "ABCDEFGH"[: 3 + (2 * group + episode) % 5] * (1 + episode))
            rendered = renderer.render([Message("user", tuple(blocks)), answer])
            count = len(rendered.token_ids)
            made.append(
                Trajectory(
                    sample_id=f"s{group}",
                    task="t",
                    group=group,
                    episode=episode,
                    token_ids=rendered.token_ids,
                    sampled=rendered.supervised,
                    logprobs=[-1.0 if s else 0.0 for s in rendered.supervised],
                    versions=[3 if s else -1 for s in rendered.supervised],
                    approximate=[False] * count,
                    images=rendered.images,
                    advantage=advantage,
                )
            )
    assert max(len(each.token_ids) for each in made) < LONGEST
    return made


def learner_of(checkpoint: Path, way: Way, ranks: int = 1, resume: bool = False) -> Learner:
    stage = RlStage.model_validate(
        {
            "stage": "rl",
            "algorithm": {"name": way.algorithm, "group_size": 3, "mini_batches": 1},
            "tasks": [{"data": "markers", "rewards": [{"name": "answer_accuracy"}]}],
            "prompts_per_step": 5,
            "max_steps": 10,
            "rollout": {"max_length": way.max_length, "max_new_tokens": 32},
            "max_batch_tokens": way.max_batch_tokens,
            "lora": {"rank": 2} if way.lora else None,
            "num_workers": ranks,
        }
    ).model_copy(update={"sharding": way.sharding})
    config = ModelConfig(family="qwen3_vl", dtype="float32", freeze_vision_tower=not way.tower)
    learner = Learner(config, stage, checkpoint, resume)
    with torch.no_grad():
        for name, parameter in learner.model.named_parameters():
            if "lora_B" in name and not resume:
                # One value everywhere, whatever a rank holds of it.
                parameter.fill_(0.02)
    learner.tolerance = math.inf  # no engine has sampled these episodes
    return learner


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gradient_of(learner: Learner, episodes: list[Trajectory]) -> dict[str, Tensor]:
    """Return the gradient of an update by these episodes, which is not made."""
    found: dict[str, Tensor] = {}

    def step(loss_is_finite: bool = True) -> float:
        for name, parameter in learner.model.named_parameters():
            if parameter.grad is not None:
                found[name] = whole(parameter.grad).clone()
        return 1.0

    learner.updates.step = step
    learner.update(copy.deepcopy(episodes))
    learner.updates.optimizer.zero_grad()
    return found


def straight(checkpoint: Path, episodes: list[Trajectory], way: Way) -> dict[str, Tensor]:
    """The same by transformers' own forward, one episode at a time, and by the definition of the loss.

    Every objective's gradient is that of the log-probs times advantage and importance weight (GSPO's: the
    mean one) where the policy is the one that sampled.
    """
    lora, tower = way.lora, way.tower
    renderer = Renderer.from_pretrained(checkpoint, "qwen3_vl")
    model: Any = load_model(checkpoint, dtype="float32", freeze_vision_tower=not tower)
    if lora:
        model = with_lora(model, LoraConfig(rank=2), seed=0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.02)
    for episode in episodes:
        logits = model(**collate([episode], renderer)).logits[0].double()
        ids, sampled = torch.tensor(episode.token_ids), torch.tensor(episode.sampled)
        logprobs = logits.log_softmax(-1)[:-1].gather(-1, ids[1:, None])[:, 0][sampled[1:]]
        behaviour = torch.tensor(episode.logprobs)[sampled]
        weights = (logprobs.detach() - behaviour).exp().clamp(max=2.0)
        if way.algorithm == "gspo":
            weights = weights.mean()
        (-(weights * episode.advantage * logprobs).mean() / len(episodes)).backward()
    assert isinstance(model, PeftModel) == lora
    return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], limit: float = 1e-5) -> None:
    """The gradients differ by less than a share of their size, as a whole and each by itself."""
    assert found.keys() >= expected.keys()
    total = math.sqrt(sum(each.double().square().sum() for each in expected.values()))
    assert total > 0
    off = {name: (found[name].double() - each.double()).norm().item() for name, each in expected.items()}
    assert math.sqrt(sum(each**2 for each in off.values())) <= limit * total
    for name, each in expected.items():
        assert off[name] <= limit * max(each.double().norm().item(), total / 100), name
    assert all(not found[name].any() for name in found.keys() - expected.keys())


@pytest.mark.parametrize(
    ("algorithm", "rows"), [("sapo", LONGEST), ("sapo", 10_000), ("grpo", LONGEST), ("gspo", LONGEST)]
)
def test_packed_rows_learn_what_a_straight_loop_learns(
    algorithm: str, rows: int, tiny_checkpoint: Path, episodes: list[Trajectory]
) -> None:
    way = Way(max_batch_tokens=rows, algorithm=algorithm)
    learner = learner_of(tiny_checkpoint, way)
    numbers: list[int] = []
    original = learner.policy._run

    def counted(trajectories: list[Trajectory], *how: Any) -> Any:
        numbers.append(len(trajectories))
        return original(trajectories, *how)

    learner.policy._run = counted  # pyright: ignore[reportAttributeAccessIssue]
    found = gradient_of(learner, episodes)
    # No pass for the group without signal, and one for every other episode.
    assert sum(numbers) == len(episodes) - 3
    assert (len(numbers) == 1) == (rows > LONGEST)
    assert_same(found, straight(tiny_checkpoint, episodes, way))


def test_adapters_learn_what_a_straight_loop_learns(
    tiny_checkpoint: Path, episodes: list[Trajectory]
) -> None:
    way = Way(lora=True)
    found = gradient_of(learner_of(tiny_checkpoint, way), episodes)
    expected = straight(tiny_checkpoint, episodes, way)
    assert all("lora_" in name for name in found)
    assert_same(found, expected)


WAYS = (
    Way(),
    Way(sharding="fsdp2", tower=True),
    Way(sharding="fsdp2", lora=True),
    Way(lora=True, max_batch_tokens=10_000),
)


def held(learner: Learner) -> dict[str, Tensor]:
    """Return what a learner trains, and the moments of it."""
    state = learner.updates.optimizer.state
    return {
        f"{name} {slot}": whole(tensor).detach().clone()
        for name, parameter in learner.model.named_parameters()
        if parameter.requires_grad
        for slot, tensor in {"value": parameter, **state[parameter]}.items()
    }


def on_four_and_two(rank: int, checkpoint: Path, episodes: list[Trajectory], output: Path) -> None:
    """Be one of four ranks and then, if this is one of the first two, of two; rank 0 keeps the gradients."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    for ranks in (4, 2):
        if rank >= ranks:
            return
        store = f"file://{output / f'store-{ranks}'}"
        dist.init_process_group("gloo", store, timedelta(seconds=120), world_size=ranks, rank=rank)
        for number, way in enumerate(WAYS):
            found = gradient_of(learner_of(checkpoint, way, ranks), episodes)
            if rank == 0:
                torch.save(found, output / f"{ranks}-{number}.pt")
        adapted = Way(sharding="fsdp2", lora=True)
        if ranks == 4:
            learner = learner_of(checkpoint, adapted, ranks)
            learner.update(copy.deepcopy(episodes))
            learner.write_checkpoint(output / "saved")
        else:
            learner = learner_of(output / "saved", adapted, ranks, resume=True)
        found = held(learner)
        if rank == 0:
            torch.save(found, output / f"held-{ranks}.pt")
        dist.destroy_process_group()


@pytest.mark.timeout(300)
def test_any_number_of_ranks_learns_the_same_and_goes_on(
    tiny_checkpoint: Path, episodes: list[Trajectory], tmp_path: Path
) -> None:
    on_ranks(4, on_four_and_two, tiny_checkpoint, episodes, tmp_path)
    for number, way in enumerate(WAYS):
        expected = straight(tiny_checkpoint, episodes, way)
        for ranks in (2, 4):
            found = torch.load(tmp_path / f"{ranks}-{number}.pt")
            assert_same(found, expected)
    saved = torch.load(tmp_path / "held-4.pt")
    alone = held(learner_of(tmp_path / "saved", Way(lora=True), resume=True))
    assert any("exp_avg" in name and tensor.any() for name, tensor in saved.items())
    for other in (torch.load(tmp_path / "held-2.pt"), alone):
        assert other.keys() == saved.keys()
        assert all(torch.equal(other[name], saved[name]) for name in saved)


def test_episodes_with_any_number_of_images_score_as_alone(
    tiny_checkpoint: Path, episodes: list[Trajectory]
) -> None:
    """In every order, in one row; and four copies of one episode get the same log-probs, bit for bit."""
    learner = learner_of(tiny_checkpoint, Way(max_batch_tokens=10_000))
    none, one, three = episodes[3], episodes[0], episodes[9]
    assert [len(each.images) for each in (none, one, three)] == [0, 1, 3]
    alone = {id(each): learner.score([each])[0] for each in (none, one, three)}
    orders = [(a, b, c) for a in (none, one, three) for b in (none, one, three) for c in (none, one, three)]
    for order in [each for each in orders if len({id(e) for e in each}) == 3]:
        row = [logprob for logprobs in _one_row(learner, order) for logprob in logprobs]
        expected = [logprob for each in order for logprob in alone[id(each)]]
        assert row == pytest.approx(expected, abs=1e-5)
    copies = _one_row(learner, [one] * 4)
    assert all(copy == copies[0] for copy in copies)


def _one_row(learner: Learner, episodes: Any) -> list[list[float]]:
    with torch.no_grad():
        logprobs, _, _ = learner.policy.logprobs(episodes)
    return [each.tolist() for each in logprobs.split([sum(each.sampled) for each in episodes])]


def test_an_image_of_a_group_goes_through_the_tower_once(
    tiny_checkpoint: Path, episodes: list[Trajectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = learner_of(tiny_checkpoint, Way(max_batch_tokens=10_000))
    seen: list[int] = []
    tower: Any = learner.model.get_submodule("model.visual")
    forward: Callable[..., Any] = tower.forward

    def counted(pixels: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(len(pixels))
        return forward(pixels, *args, **kwargs)

    monkeypatch.setattr(tower, "forward", counted)
    gradient_of(learner, episodes)
    renderer = learner.renderer
    shown = {image.ref.sha256: image.ref for each in episodes if each.advantage for image in each.images}
    assert seen == [sum(len(renderer.pixels(ref)[0]) for ref in shown.values())]
