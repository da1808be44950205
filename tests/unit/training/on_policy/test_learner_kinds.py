"""What a learner trains besides a whole Qwen-VL: text models, adapters; and what a step costs and excuses."""

import copy
import importlib.util
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from posttrain.config import ModelConfig, RlStage
from posttrain.models.lora import base_named_by, base_of, is_adapter, load_merged
from posttrain.rendering.rendering import Renderer
from posttrain.training.on_policy import packed_policy
from posttrain.training.on_policy.agreement import PolicyMismatch
from posttrain.training.on_policy.learner import Learner
from posttrain.types import Trajectory, text_message

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes (the extra qlora)"
)


@pytest.fixture(scope="module")
def text_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text model whose head is its embeddings, with the tiny model's tokenizer."""
    directory = tmp_path_factory.mktemp("text")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (tiny_checkpoint / name).exists():
            shutil.copy(tiny_checkpoint / name, directory)
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    sizes: Any = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads: Any = {"num_attention_heads": 2, "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>")}
    config = LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **sizes, **heads)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.save_pretrained(directory)
    return directory


def stage_of(**settings: Any) -> RlStage:
    return RlStage.model_validate(
        {
            "stage": "rl",
            "algorithm": {"name": "sapo", "group_size": 2, "mini_batches": settings.pop("mini_batches", 1)},
            "tasks": [{"data": "questions", "rewards": [{"name": "answer_accuracy"}]}],
            "prompts_per_step": 2,
            "max_steps": 10,
            "learning_rate": 1e-2,
            "rollout": {"max_length": 128, "max_new_tokens": 32},
        }
        | settings
    )


@pytest.fixture
def make(text_checkpoint: Path) -> Callable[..., Learner]:
    def made(checkpoint: Path = text_checkpoint, resume: bool = False, **settings: Any) -> Learner:
        config = ModelConfig.model_validate({"family": "text", "dtype": "float32"})
        return Learner(config, stage_of(**settings), checkpoint, resume, seed=3)

    return made


@pytest.fixture
def episodes(text_checkpoint: Path) -> list[Trajectory]:
    """Two groups of two answers, without log-probs."""
    renderer = Renderer.from_pretrained(text_checkpoint, "text")
    made: list[Trajectory] = []
    for place, answer in enumerate(("A", "BCD", "E", "FGHI")):
        rendered = renderer.render([text_message("user", "Which?"), text_message("assistant", answer)])
        count = len(rendered.token_ids)
        made.append(
            Trajectory(
                sample_id=f"s{place // 2}",
                task="questions",
                group=place // 2,
                episode=place % 2,
                token_ids=rendered.token_ids,
                sampled=rendered.supervised,
                logprobs=[0.0] * count,
                versions=[5 if s else -1 for s in rendered.supervised],
                approximate=[False] * count,
                advantage=(1.0, -1.0)[place % 2],
            )
        )
    return made


def sample(learner: Learner, episodes: list[Trajectory]) -> list[Trajectory]:
    """Give the episodes the log-probs of an engine with the learner's weights."""
    episodes = copy.deepcopy(episodes)
    for episode, logprobs in zip(episodes, learner.score(episodes), strict=True):
        values = iter(logprobs)
        episode.logprobs = [next(values) if sampled else 0.0 for sampled in episode.sampled]
    return episodes


def test_a_text_model_with_tied_embeddings_learns(
    make: Callable[..., Learner], text_checkpoint: Path, episodes: list[Trajectory], tmp_path: Path
) -> None:
    learner = make()
    straight: Any = AutoModelForCausalLM.from_pretrained(text_checkpoint)
    sampled = sample(learner, episodes)
    for episode in sampled:
        ids = torch.tensor(episode.token_ids)
        with torch.no_grad():
            logs = straight(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
        expected = logs.gather(1, ids[1:, None])[:, 0][torch.tensor(episode.sampled[1:])].tolist()
        assert [p for p, s in zip(episode.logprobs, episode.sampled, strict=True) if s] == pytest.approx(
            expected, abs=1e-5
        )
    metrics = learner.update(sampled)
    assert metrics["logprob_gap/max"] < 1e-5
    before, after = ([sum(each) for each in _of(sampled)], [sum(each) for each in learner.score(sampled)])
    moved = [(new - old) * (e.advantage or 0) for old, new, e in zip(before, after, sampled, strict=True)]
    assert sum(moved) > 0
    learner.write_checkpoint(tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names


def _of(episodes: list[Trajectory]) -> list[list[float]]:
    return [[p for p, s in zip(e.logprobs, e.sampled, strict=True) if s] for e in episodes]


ADAPTERS = [
    ({}, "adamw"),
    ({"quantization": None, "target_modules": ["q_proj", "v_proj"]}, "muon"),
    pytest.param({"quantization": "nf4"}, "adamw", marks=needs_bitsandbytes),
    pytest.param({}, "adamw_8bit", marks=needs_bitsandbytes),
]


@pytest.mark.parametrize(("lora", "optimizer"), ADAPTERS)
def test_adapters_learn_and_go_on_bit_for_bit(
    make: Callable[..., Learner],
    text_checkpoint: Path,
    episodes: list[Trajectory],
    tmp_path: Path,
    lora: dict[str, Any],
    optimizer: str,
) -> None:
    settings: dict[str, Any] = {"lora": {"rank": 2} | lora, "optimizer": optimizer}
    learner = make(**settings)
    learner.update(sample(learner, episodes))
    learner.write_checkpoint(tmp_path)
    assert is_adapter(tmp_path)
    assert base_of(tmp_path) == str(text_checkpoint)
    written = load_file(tmp_path / "adapter_model.safetensors")
    assert any(tensor.any() for name, tensor in written.items() if "lora_B" in name)
    resumed = make(tmp_path, resume=True, **settings)
    again = sample(learner, episodes)
    rows = [each.update(copy.deepcopy(again)) for each in (learner, resumed)]
    assert rows[0]["loss"] == rows[1]["loss"]
    assert rows[0]["learning_rate"] == rows[1]["learning_rate"]
    ours, theirs = (
        {name: p for name, p in each.model.named_parameters() if p.requires_grad}
        for each in (learner, resumed)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    if not lora.get("quantization"):  # they are merged into the weights as they were
        merged = load_merged(tmp_path).eval()
        ids = torch.tensor(again[1].token_ids)
        with torch.no_grad():
            logs = merged(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
        expected = logs.gather(1, ids[1:, None])[:, 0][torch.tensor(again[1].sampled[1:])]
        assert _of(again)[1] == pytest.approx(expected.tolist(), abs=1e-5)


def test_only_later_mini_batches_are_run_twice(
    make: Callable[..., Learner], episodes: list[Trajectory]
) -> None:
    learner = make(mini_batches=2)
    sampled = sample(learner, episodes)
    passes: list[tuple[list[int], bool]] = []
    original = learner.policy._run

    def noted(trajectories: list[Trajectory], *how: Any) -> Any:
        passes.append(([each.group for each in trajectories], torch.is_grad_enabled()))
        return original(trajectories, *how)

    learner.policy._run = noted  # pyright: ignore[reportAttributeAccessIssue]
    metrics = learner.update(sampled)
    # The second, before the first update; then each.
    assert passes == [([1, 1], False), ([0, 0], True), ([1, 1], True)]
    assert metrics["kl/old_new"] > 0
    assert metrics["logprob_gap/max"] < 1e-5


def test_groups_without_signal_change_nothing_and_cost_one_pass(
    make: Callable[..., Learner], episodes: list[Trajectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = make(mini_batches=2)
    alike = sample(learner, episodes)
    for episode in alike:
        episode.advantage = 0.0
    passes: list[bool] = []
    original = learner.policy._run

    def noted(*how: Any) -> Any:
        passes.append(torch.is_grad_enabled())
        return original(*how)

    monkeypatch.setattr(learner.policy, "_run", noted)
    before = {name: p.clone() for name, p in learner.model.named_parameters()}
    metrics = learner.update(alike)
    assert metrics["loss"] == metrics["grad_norm"] == metrics["update/skipped"] == 0
    assert passes == [False]  # to compare with the engine, and to measure
    assert metrics["entropy"] > 0
    assert all(torch.equal(before[name], p) for name, p in learner.model.named_parameters())
    assert learner.updates.schedule.last_epoch == 2


def test_tokens_of_older_versions_are_no_mismatch(
    make: Callable[..., Learner], episodes: list[Trajectory]
) -> None:
    learner = make()
    sampled = sample(learner, episodes)
    place = sampled[0].sampled.index(True)
    sampled[0].logprobs[place] -= 0.5
    sampled[0].versions[place] = 4
    metrics = learner.update(copy.deepcopy(sampled), version=5)
    assert metrics["drift/gap"] == pytest.approx(0.5, abs=1e-4)
    assert metrics["logprob_gap/max"] < 1e-5
    for version in (4, None):  # the token is one of the present weights'; or the newest, which are 5
        learner = make()
        if version is None:
            sampled[0].versions[place] = 5
        before = [p.clone() for p in learner.model.parameters()]
        with pytest.raises(PolicyMismatch, match=r"differ by 5.00e-01 \(text\)"):
            learner.update(copy.deepcopy(sampled), version=version)
        assert all(torch.equal(b, p) for b, p in zip(before, learner.model.parameters(), strict=True))
        assert all(p.grad is None for p in learner.model.parameters())


def test_importance_weights_compare_the_present_policy_with_the_one_that_sampled(
    make: Callable[..., Learner], episodes: list[Trajectory]
) -> None:
    """A token that an older version was less likely to sample weighs more, up to the cap."""
    losses = {}
    for gap in (0.0, 0.5, 5.0):
        learner = make()
        sampled = [each for each in sample(learner, episodes) if each.group == 0]
        sampled[1].advantage = 1e-9
        for place, is_sampled in enumerate(sampled[0].sampled):
            if is_sampled:
                sampled[0].logprobs[place] -= gap
                sampled[0].versions[place] = 4
        losses[gap] = learner.update(sampled, version=5)["loss"]
    assert losses[0.5] == pytest.approx(losses[0.0] * math.exp(0.5), rel=1e-3)
    assert losses[5.0] == pytest.approx(losses[0.0] * 2.0, rel=1e-3)


def test_adapters_learned_away_from_home_name_their_base_as_it_is_at_home(
    make: Callable[..., Learner],
    text_checkpoint: Path,
    episodes: list[Trajectory],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A rank on another node reads copies; the paths at home are not there."""
    home = tmp_path / "home" / "runs" / "sft"
    copies = {home: text_checkpoint}
    monkeypatch.setattr(packed_policy, "fetch_folder", lambda folder: copies.get(folder, folder))
    learner = make(home, lora={"rank": 4})
    learner.update(sample(learner, episodes))
    learner.write_checkpoint(tmp_path / "copied")
    assert base_named_by(tmp_path / "copied") == str(home)
    assert str(text_checkpoint) not in (tmp_path / "copied" / "README.md").read_text()
    written = tmp_path / "home" / "runs" / "rl"
    copies[written] = tmp_path / "copied"
    resumed = make(written, resume=True, lora={"rank": 4})
    assert resumed.score(episodes) == learner.score(episodes)
    assert resumed.updates.figures() == learner.updates.figures()
    assert resumed.score(episodes) != make(home, lora={"rank": 4}).score(episodes)
