"""Scoring processes: hangs, crashes, leaks and attacks cost one sample and nothing more."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain.plugins import PluginError
from posttrain.types import RewardInput
from rewards.manager import RewardSpec
from rewards.sdk import RewardError
from rewards.wire import WireError
from rewards.workers.scorer import Scorer

PLUGIN = """
import asyncio, os, re, time
from rewards import Score, group_reward, reward
import rewards.manager

@reward("moody")
def moody(x):
    match x.answer:
        case "hang":
            time.sleep(1000)
        case "regex bomb":
            re.match(r"(a|a)*$", "a" * 40 + "b")
        case "crash":
            os._exit(7)
        case "pid":
            return Score(0.5, parts={"pid": os.getpid()})
        case "surrogate":
            return Score(1.0, note="\\ud800")
        case "patch":
            rewards.sdk.Reward.judge = lambda self, xs, params: [Score(1.0)] * len(xs)
        case "mutate":
            x.columns["target"] = 0
    return 0.0

@reward("target")
def target(x):
    return float(x.columns["target"] == 1)

@group_reward("shortest")
def shortest(xs):
    if any(x.answer == "crash" for x in xs):
        os._exit(7)
    least = min(len(x.answer) for x in xs)
    return [float(len(x.answer) == least) for x in xs]

@group_reward("miscounting")
def miscounting(xs):
    return [1.0]

@reward("judge", deadline_s=1)
async def judge(x):
    if x.answer == "block":
        time.sleep(1000)
    if x.answer == "die":
        os._exit(3)
    await asyncio.sleep(1000 if x.answer == "hang" else 0.3)
    if x.answer == "fail":
        raise ConnectionError("the judge is away")
    return 0.5

@group_reward("ranked", deadline_s=5)
async def ranked(xs):
    await asyncio.sleep(0.1)
    return [i / len(xs) for i in range(len(xs))]
"""
ALL = ["moody", "target", "shortest", "miscounting", "judge", "ranked"]
MOODY = [RewardSpec("mine.py:moody")]


def episode(answer: str) -> RewardInput:
    return RewardInput((), (), answer, columns={"target": 1})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plugins")
    (path / "mine.py").write_text(PLUGIN)
    return path


@pytest.fixture
def scorer(folder: Path) -> Iterator[Scorer]:
    references = [f"mine.py:{name}" for name in ALL]
    with Scorer(references, workers=2, deadline_s=0.5, base_dir=folder, samples_per_worker=50) as scorer:
        yield scorer


def values(scorer: Scorer, answers: list[str]) -> list[float | str | None]:
    """Each sample's value, or its error."""
    results = scorer.submit(MOODY, [episode(answer) for answer in answers]).results()
    return [result.errors.get("mine.py:moody") or result.values["mine.py:moody"] for result in results]


def test_hangs_and_crashes_leave_the_others_unharmed(scorer: Scorer) -> None:
    bad = ["hang", "crash", "regex bomb"]
    answers = ["good"] * 100
    for place, answer in zip(range(5, 100, 16), bad * 2, strict=True):
        answers[place] = answer
    begun = time.perf_counter()
    found = values(scorer, answers)
    assert time.perf_counter() - begun < 20
    for answer, value in zip(answers, found, strict=True):
        if answer == "crash":
            assert value == "ended its scoring process (exit code 7)"
        elif answer in bad:
            assert value == "took longer than its deadline of 0.5 s and was killed"
        else:
            assert value == 0.0
    assert (scorer.counts["hangs"], scorer.counts["crashes"], scorer.counts["samples"]) == (4, 2, 100)


def test_a_lost_reward_costs_only_its_own_verdict(scorer: Scorer) -> None:
    (result,) = scorer.submit([*MOODY, RewardSpec("mine.py:target")], [episode("hang")]).results()
    assert result.values == {"mine.py:target": 1.0}
    assert list(result.errors) == ["mine.py:moody"]


def test_a_reward_cannot_change_what_the_next_one_sees(scorer: Scorer) -> None:
    (result,) = scorer.submit([*MOODY, RewardSpec("mine.py:target")], [episode("mutate")]).results()
    assert result.values["mine.py:target"] == 1.0


def test_workers_are_recycled_and_end_with_the_pool(folder: Path) -> None:
    with Scorer(["mine.py:moody"], workers=1, base_dir=folder, samples_per_worker=3) as scorer:
        waiting = [scorer.submit(MOODY, [episode("pid")]) for _ in range(9)]
        pids = [int(scoring.results()[0].parts["mine.py:moody"]["pid"]) for scoring in waiting]
    assert len(set(pids)) == 3
    assert scorer.counts["recycled"] == 3
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids if pid != os.getpid())


def test_a_patched_grader_is_gone_with_its_worker(folder: Path) -> None:
    with Scorer(["mine.py:moody"], workers=1, base_dir=folder) as scorer:
        assert values(scorer, ["patch", "wrong"]) == [0.0, 1.0]  # the attack is real
    with Scorer(["mine.py:moody"], workers=1, base_dir=folder, samples_per_worker=1) as scorer:
        assert values(scorer, ["patch", *["wrong"] * 20]) == [0.0] * 21


def test_a_verdict_that_cannot_be_written_is_an_error(scorer: Scorer) -> None:
    (error,) = values(scorer, ["surrogate"])
    assert "cannot be written as JSON" in str(error)
    assert scorer.counts["crashes"] == 0


def test_only_the_references_given_at_the_start_can_run(scorer: Scorer) -> None:
    for name in ("math", "mine.py:plain", "os:system", "/etc/passwd"):
        with pytest.raises(RewardError, match="not served here"):
            scorer.submit([RewardSpec(name)], [episode("a")])


def test_a_sample_that_is_not_json_is_refused_at_once(scorer: Scorer) -> None:
    with pytest.raises(WireError):
        scorer.submit(MOODY, [RewardInput((), (), "a", ground_truth=float("nan"))])


def test_a_broken_reference_is_told_at_the_start(folder: Path) -> None:
    with pytest.raises(PluginError, match=r"nowhere\.py"):
        Scorer(["nowhere.py:x"], workers=2, base_dir=folder)


def test_a_group_reward_sees_whole_groups(scorer: Scorer) -> None:
    specs = [RewardSpec("mine.py:shortest"), RewardSpec("mine.py:target", 0.5)]
    inputs = [episode(answer) for answer in ("aa", "b", "ccc", "dd", "crash", "f")]
    results = scorer.submit(specs, inputs, groups=[0, 0, 1, 1, 2, 2]).results()
    assert [result.total for result in results] == [0.5, 1.5, 0.5, 1.5, None, None]
    assert "exit code 7" in results[5].errors["mine.py:shortest"]


def test_a_group_reward_answers_for_every_member(scorer: Scorer) -> None:
    results = scorer.submit([RewardSpec("mine.py:miscounting")], [episode("a")] * 2, groups=[0, 0]).results()
    assert all("a list of as many" in result.errors["mine.py:miscounting"] for result in results)


def test_groups_are_asked_for(scorer: Scorer) -> None:
    with pytest.raises(RewardError, match="groups"):
        scorer.submit([RewardSpec("mine.py:shortest")], [episode("a")])
    with pytest.raises(RewardError, match="one for each"):
        scorer.submit([RewardSpec("mine.py:shortest")], [episode("a")], groups=[0, 0])


def test_async_rewards_wait_together(scorer: Scorer) -> None:
    specs = [RewardSpec("mine.py:judge"), RewardSpec("mine.py:ranked"), RewardSpec("mine.py:target")]
    scorer.submit([RewardSpec("mine.py:judge")], [episode("")]).results()  # its process has started
    begun = time.perf_counter()
    results = scorer.submit(specs, [episode(f"{i}") for i in range(60)], groups=[0] * 60).results()
    assert time.perf_counter() - begun < 6  # one after the other it would be 18
    assert [result.values["mine.py:judge"] for result in results] == [0.5] * 60
    assert [result.values["mine.py:ranked"] for result in results] == [i / 60 for i in range(60)]


@pytest.mark.parametrize(
    ("answer", "reason"), [("hang", "deadline of 1 s"), ("fail", "ConnectionError: the judge is away")]
)
def test_an_async_failure_costs_one_sample(scorer: Scorer, answer: str, reason: str) -> None:
    bad, good = scorer.submit([RewardSpec("mine.py:judge")], [episode(answer), episode("good")]).results()
    assert (bad.total, good.total) == (None, 0.5)
    assert reason in bad.errors["mine.py:judge"]


@pytest.mark.parametrize(("answer", "reason"), [("block", "blocked the process"), ("die", "exit code 3")])
def test_a_lost_async_process_masks_what_ran_and_is_replaced(
    scorer: Scorer, answer: str, reason: str
) -> None:
    results = scorer.submit([RewardSpec("mine.py:judge")], [episode(answer), episode("good")]).results()
    assert all(result.total is None for result in results)
    assert any(reason in result.errors["mine.py:judge"] for result in results)
    assert scorer.submit([RewardSpec("mine.py:judge")], [episode("good")]).results()[0].total == 0.5


def test_nothing_is_left_in_the_queue(scorer: Scorer) -> None:
    specs = [RewardSpec("mine.py:judge"), RewardSpec("mine.py:moody")]
    scorings = [scorer.submit(specs, [episode(answer)] * 5) for answer in ("good", "crash", "fail")]
    assert scorer.queued > 0
    for scoring in scorings:
        scoring.results()
    while scorer.queued:  # counted a moment after the results are there
        time.sleep(0.01)
    assert (scorer.queued, scorer.counts["samples"], scorer.counts["errors"]) == (0, 15, 10)
