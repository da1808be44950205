"""Scoring processes: hangs, crashes, leaks and attacks cost one sample and nothing more."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain.plugins import PluginError
from posttrain.types import RewardInput, Score
from rewards.manager import Outcome, RewardSpec
from rewards.pool import WorkerPool
from rewards.sdk import RewardError
from rewards.wire import WireError

PLUGIN = """
import os, re, time
from rewards import Score, reward
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
            rewards.sdk.Reward.__call__ = lambda self, x, **params: Score(1.0)
        case "mutate":
            x.columns["target"] = 0
    return 0.0

@reward("target")
def target(x):
    return float(x.columns["target"] == 1)
"""
MOODY = [RewardSpec("mine.py:moody")]


def episode(answer: str) -> RewardInput:
    return RewardInput((), (), answer, columns={"target": 1})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plugins")
    (path / "mine.py").write_text(PLUGIN)
    return path


@pytest.fixture
def pool(folder: Path) -> Iterator[WorkerPool]:
    references = ["mine.py:moody", "mine.py:target"]
    with WorkerPool(references, workers=2, deadline_s=0.5, base_dir=folder, samples_per_worker=50) as pool:
        yield pool


def values(pool: WorkerPool, answers: list[str]) -> list[float | str]:
    """Each sample's value, or its error."""
    waiting = [pool.submit(MOODY, episode(answer)) for answer in answers]
    outcomes = [future.result(60)[0] for future in waiting]
    return [outcome.score.value if outcome.score else outcome.error for outcome in outcomes]


def test_hangs_and_crashes_leave_the_others_unharmed(pool: WorkerPool) -> None:
    bad = ["hang", "crash", "regex bomb"]
    answers = ["good"] * 100
    for place, answer in zip(range(5, 100, 16), bad * 2, strict=True):
        answers[place] = answer
    begun = time.perf_counter()
    found = values(pool, answers)
    assert time.perf_counter() - begun < 20
    for answer, value in zip(answers, found, strict=True):
        if answer == "crash":
            assert value == "ended its scoring process (exit code 7)"
        elif answer in bad:
            assert value == "took longer than its deadline of 0.5 s and was killed"
        else:
            assert value == 0.0
    assert (pool.counts["hangs"], pool.counts["crashes"], pool.counts["samples"]) == (4, 2, 100)


def test_a_lost_reward_costs_only_its_own_verdict(pool: WorkerPool) -> None:
    lost, kept = pool.submit([*MOODY, RewardSpec("mine.py:target")], episode("hang")).result(60)
    assert (lost.score, kept) == (None, Outcome(Score(1.0)))


def test_a_reward_cannot_change_what_the_next_one_sees(pool: WorkerPool) -> None:
    assert pool.submit([*MOODY, RewardSpec("mine.py:target")], episode("mutate")).result(60)[
        1
    ].score == Score(1.0)


def test_workers_are_recycled_and_end_with_the_pool(folder: Path) -> None:
    with WorkerPool(["mine.py:moody"], workers=1, base_dir=folder, samples_per_worker=3) as pool:
        waiting = [pool.submit(MOODY, episode("pid")) for _ in range(9)]
        pids = [int(future.result(60)[0].score.parts["pid"]) for future in waiting]  # type: ignore[union-attr]
    assert len(set(pids)) == 3
    assert pool.counts["recycled"] == 3
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids if pid != os.getpid())


def test_a_patched_grader_is_gone_with_its_worker(folder: Path) -> None:
    with WorkerPool(["mine.py:moody"], workers=1, base_dir=folder) as pool:
        assert values(pool, ["patch", "wrong"]) == [0.0, 1.0]  # the attack is real
    with WorkerPool(["mine.py:moody"], workers=1, base_dir=folder, samples_per_worker=1) as pool:
        assert values(pool, ["patch", *["wrong"] * 20]) == [0.0] * 21


def test_a_verdict_that_cannot_be_written_is_an_error(pool: WorkerPool) -> None:
    (error,) = values(pool, ["surrogate"])
    assert "cannot be written as JSON" in str(error)
    assert pool.counts["crashes"] == 0


def test_only_the_references_given_at_the_start_can_run(pool: WorkerPool) -> None:
    for name in ("math", "mine.py:plain", "os:system", "/etc/passwd"):
        with pytest.raises(RewardError, match="not served here"):
            pool.submit([RewardSpec(name)], episode("a"))


def test_a_sample_that_is_not_json_is_refused_at_once(pool: WorkerPool) -> None:
    with pytest.raises(WireError):
        pool.submit(MOODY, RewardInput((), (), "a", ground_truth=float("nan")))


def test_a_broken_reference_is_told_at_the_start(folder: Path) -> None:
    with pytest.raises(PluginError, match=r"nowhere\.py"):
        WorkerPool(["nowhere.py:x"], workers=2, base_dir=folder)
