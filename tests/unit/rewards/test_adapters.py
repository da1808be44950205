"""Other toolkits' functions by reference: in this process, and in processes that can be killed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain.types import RewardInput, text_message
from rewards.manager import RewardManager, RewardSpec
from rewards.workers.scorer import Scorer

PLUGIN = """
import asyncio, functools
import numpy as np
from rewards import from_trl, from_verl

def right(text, gold):
    return float(text.endswith(gold))

def geo3k(predict_str, ground_truth, use_boxed=True, format_score=0.1):
    return {"score": np.float32(right(predict_str, ground_truth)), "acc": np.bool_(True), "pred": predict_str}

def batched(data_sources, solution_strs, ground_truths, extra_infos):
    return np.array([right(r, g) for r, g in zip(solution_strs, ground_truths)])

async def grm(data_source, solution_str, ground_truth, extra_info):
    await asyncio.sleep(0.3)
    return {"score": right(solution_str, ground_truth), "turns": extra_info["num_turns"]}

async def ranked(data_sources, solution_strs, ground_truths, extra_infos):
    await asyncio.sleep(0.3)
    return batched(data_sources, solution_strs, ground_truths, extra_infos)

def r1v(reward_input, format_weight=0.5):
    return {"overall": right(reward_input["response"], reward_input["ground_truth"])}

def tokens(completion_ids, **kwargs):
    return [len(ids) / 10 for ids in completion_ids]

class ORM:
    def __init__(self, args=None):
        pass

class Letter(ORM):
    def __call__(self, completions, solution, **kwargs):
        return [right(text, gold) for text, gold in zip(completions, solution)]

class AsyncORM:
    pass

class Waits(AsyncORM):
    async def __call__(self, completions, solution, **kwargs):
        await asyncio.sleep(0.3)
        return Letter()(completions, solution)

def f(completions, **kwargs):
    return [len(c[0]["content"]) / 10 for c in completions]

verl = from_verl(geo3k)
verl_partial = from_verl(functools.partial(geo3k, use_boxed=False), name="partial")
verl_batch = from_verl(batched)
verl_async = from_verl(grm)
verl_async_batch = from_verl(ranked)
easyr1 = from_verl(r1v)
trl_tokens = from_trl(tokens)
orm = from_trl(Letter)
orm_async = from_trl(Waits)
short = from_trl(f)
"""
SINGLE = ("verl", "verl_partial", "verl_async", "easyr1")
GROUP = ("verl_batch", "verl_async_batch", "trl_tokens", "orm", "orm_async", "short")
ASYNC = ("verl_async", "verl_async_batch", "orm_async")


def episode(answer: str, gold: str | None = "K", tokens: int = 0) -> RewardInput:
    turn = (text_message("assistant", answer),)
    return RewardInput((), turn, answer, gold, completion_ids=tuple(range(tokens)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    (folder / "mine.py").write_text(PLUGIN)
    return folder


@pytest.fixture(scope="module")
def scorer(folder: Path) -> Iterator[Scorer]:
    references = [f"mine.py:{name}" for name in SINGLE + GROUP]
    with Scorer(references, workers=1, base_dir=folder) as scorer:
        yield scorer


@pytest.mark.parametrize("name", [*SINGLE, *GROUP])
def test_processes_say_what_this_process_says(scorer: Scorer, folder: Path, name: str) -> None:
    xs = [episode("It is K", tokens=3), episode("It is B", tokens=7), episode("K", tokens=1)]
    spec = RewardSpec(f"mine.py:{name}")
    results = scorer.submit([spec], xs, groups=[0, 0, 0]).results()
    assert not any(result.errors for result in results)
    assert results == RewardManager([spec], folder).score(xs, groups=[0, 0, 0])
    if name not in ("trl_tokens", "short"):
        assert [result.total for result in results] == [1.0, 0.0, 1.0]
    if name == "trl_tokens":
        assert [result.total for result in results] == [0.3, 0.7, 0.1]
    if name == "verl":
        assert results[0].parts == {spec.name: {"acc": 1.0}}
        assert results[0].notes == {spec.name: "pred: It is K"}
    said = next(loaded for loaded in scorer.rewards if loaded["name"] == spec.name)
    assert (said["group"], said["async"]) == (name in GROUP, name in ASYNC)


def test_a_gold_that_is_missing_masks_its_episode(scorer: Scorer) -> None:
    names = ("verl", "verl_async", "verl_async_batch", "easyr1", "orm", "orm_async")
    specs = [RewardSpec(f"mine.py:{name}") for name in names]
    (result,) = scorer.submit(specs, [episode("K", None)], groups=[0]).results()
    assert result.total is None
    assert set(result.errors) == {spec.name for spec in specs}
    assert all("ground_truth" in reason for reason in result.errors.values())


def test_token_ids_that_are_missing_mask_the_group(scorer: Scorer) -> None:
    results = scorer.submit([RewardSpec("mine.py:trl_tokens")], [episode("K")], groups=[0]).results()
    assert [result.total for result in results] == [None]
    assert "completion_ids" in results[0].errors["mine.py:trl_tokens"]


def test_adapted_rewards_have_weights_like_others(folder: Path) -> None:
    specs = [RewardSpec("mine.py:short"), RewardSpec("mine.py:verl", 2.0)]
    results = RewardManager(specs, folder).score([episode("ab"), episode("abK")], groups=[0, 0])
    assert [result.total for result in results] == pytest.approx([0.2, 2.3])
