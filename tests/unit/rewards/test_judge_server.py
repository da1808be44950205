"""Judges through the reward server: the same verdicts as in process, parameters guarded, faults masked."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from posttrain.types import RewardInput, text_message
from rewards import wire
from rewards.manager import RewardManager, RewardSpec
from rewards.serving.config import ServerConfig
from rewards.serving.server import create_app
from rewards.workers.scorer import Scorer

NAMES = ["judge", "judge_accuracy", "multi_turn_reasoning", "judge_pairwise"]
GROUPS = [0, 0, 0, 1, 1, 1]


@pytest.fixture(scope="module")
def scorer() -> Iterator[Scorer]:
    with Scorer(NAMES, workers=1) as scorer:
        yield scorer


def episode(answer: str) -> RewardInput:
    question = (text_message("user", "What does the sign say?"),)
    looked = (text_message("assistant", "I zoom in."), text_message("tool", "Here it is."))
    return RewardInput(question, (*looked, text_message("assistant", answer)), answer, "PUSH")


INPUTS = [episode(answer) for answer in ("PUSH", "PULL", "", "It says push", "A door", "Solution")]


def specs(judge: Any, tmp_path: Path, **params: Any) -> list[RewardSpec]:
    shared = {"model": "j", "base_url": judge.url, "cache_dir": str(tmp_path), **params}
    return [RewardSpec(name, params=shared) for name in NAMES]


def config(**params: Any) -> ServerConfig:
    return ServerConfig.model_validate({"rewards": [{"name": name, "params": params} for name in NAMES]})


def post(client: TestClient, asked: list[RewardSpec]) -> Any:
    body = wire.score_request(asked, INPUTS, GROUPS)
    return client.post("/v1/score", content=body, headers={"Content-Type": "application/json"})


def test_verdicts_are_those_of_the_process(judge_server: Any, scorer: Scorer, tmp_path: Path) -> None:
    asked = specs(judge_server, tmp_path / "a")
    client = TestClient(create_app(scorer, config(), token="t"), headers={"Authorization": "Bearer t"})
    reply = post(client, asked)
    assert reply.status_code == 200, reply.text
    results = [wire.result_from_json(row, "") for row in reply.json()["results"]]
    assert results == RewardManager(specs(judge_server, tmp_path / "b")).score(INPUTS, GROUPS)
    assert all(result.total is not None for result in results)


def test_addresses_and_files_are_taken_from_the_configuration(
    judge_server: Any, scorer: Scorer, tmp_path: Path
) -> None:
    open_client = TestClient(create_app(scorer, config()))
    assert "names a file or an address" in post(open_client, specs(judge_server, tmp_path)).text
    assert judge_server.asked == []
    fixed = {"base_url": judge_server.url, "cache_dir": str(tmp_path), "model": "j"}
    fixed_client = TestClient(create_app(scorer, config(**fixed)))
    assert post(fixed_client, [RewardSpec(name) for name in NAMES]).status_code == 200
    assert "fixed by this server" in post(fixed_client, [RewardSpec("judge", params={"model": "x"})]).text


def test_a_judge_that_fails_masks_the_episode(judge_server: Any, scorer: Scorer, tmp_path: Path) -> None:
    judge_server.behave = lambda request: judge_server.say("nonsense")
    client = TestClient(create_app(scorer, config(), token="t"), headers={"Authorization": "Bearer t"})
    asked = [specs(judge_server, tmp_path, max_attempts=1)[1]]
    totals = [row["total"] for row in post(client, asked).json()["results"]]
    assert totals == [1.0, None, 0.0, None, None, 0.0]  # what a rule can tell needs no judge
