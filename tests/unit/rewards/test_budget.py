"""A budget of judges: exact over threads, processes, replicas and resumes; spent, it stops or skips."""

import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from posttrain.chat_endpoint import ChatError
from posttrain.files.tally import Tally, TallyError
from posttrain.types import RewardInput, text_message
from rewards import wire
from rewards.budget import Budget, Purse, read_budget
from rewards.manager import RewardManager, RewardSpec
from rewards.sdk import LeftOut, RewardError, StopScoring
from rewards.serving import client as reward_client
from rewards.serving.config import ServerConfig, read_server_config
from rewards.serving.server import create_app
from rewards.workers.scorer import PendingScores, Scorer

PRICES = {"j": {"input": 2.0, "output": 10.0}}


def episode(answer: str) -> RewardInput:
    question = (text_message("user", "What does the sign say?"),)
    return RewardInput(question, (text_message("assistant", answer),), answer, "PUSH")


def answers(count: int, start: int = 0) -> list[RewardInput]:
    return [episode(f"PULL {number}") for number in range(start, start + count)]


def judge(url: str, name: str = "judge_accuracy", **params: Any) -> RewardSpec:
    return RewardSpec(name, params={"model": "j", "base_url": url, "cache_dir": None, **params})


def with_usage(judge_server: Any, sent: Any = 1000, written: Any = 100) -> None:
    def behave(request: dict[str, Any]) -> Any:
        said = judge_server.say(judge_server.honest(request))
        body = json.loads(said.body)
        used = {"prompt_tokens": sent, "completion_tokens": written}
        body["usage"] = {key: value() if callable(value) else value for key, value in used.items()}
        return judge_server.send(json.dumps(body).encode())

    judge_server.behave = behave


def budget(tmp_path: Path, **keys: Any) -> Budget:
    return Budget.model_validate({"ledger": tmp_path / "ledger.json", **keys})


def sums(tmp_path: Path) -> dict[str, float]:
    return Tally(tmp_path / "ledger.json").read()


def refusal(pending: PendingScores) -> str:
    """Why there are no results; "" where there are."""
    try:
        pending.results()
    except StopScoring as error:
        return str(error)
    return ""


def test_replicas_and_resumes_share_the_calls(judge_server: Any, tmp_path: Path) -> None:
    limits = budget(tmp_path, max_calls=30)
    names = ["judge_accuracy"]
    with (
        Scorer(names, workers=1, judge_budget=limits) as one,
        Scorer(names, workers=1, judge_budget=limits) as other,
    ):
        pending = [
            scorer.submit([judge(judge_server.url)], answers(1, start=number))
            for number, scorer in enumerate([one, other] * 20)
        ]
        refused = [error for each in pending if (error := refusal(each))]
    assert len(refused) == 10
    assert all("all 30 calls of max_calls were made" in error and "--resume" in error for error in refused)
    assert len(judge_server.asked) == 30
    assert sums(tmp_path)["calls"] == 30
    # Whoever resumes goes on with what was counted, and with a larger budget has what was added.
    with Scorer(names, workers=1, judge_budget=limits) as resumed, pytest.raises(StopScoring):
        resumed.submit([judge(judge_server.url)], answers(1)).results()
    with Scorer(names, workers=1, judge_budget=budget(tmp_path, max_calls=33)) as richer:
        assert len(richer.submit([judge(judge_server.url)], answers(3)).results()) == 3
    assert len(judge_server.asked) == 33


def test_retries_are_calls_and_known_verdicts_are_none(judge_server: Any, tmp_path: Path) -> None:
    judge_server.behave = lambda request: judge_server.send(b"", 503)
    params = {"budget": budget(tmp_path).params(), "max_attempts": 3}
    [failed] = RewardManager([judge(judge_server.url, **params)]).score(answers(1))
    assert "gave no answer in 3 attempts" in failed.errors["judge_accuracy"]
    assert sums(tmp_path) == {"calls": 3}
    with_usage(judge_server)
    kept = judge(judge_server.url, **params, cache_dir=str(tmp_path / "verdicts"))
    assert RewardManager([kept]).score(answers(1)) == RewardManager([kept]).score(answers(1))
    assert sums(tmp_path) == {
        "calls": 4,
        "cached": 1,
        "input_tokens": 1000,
        "output_tokens": 100,
        "cost": 0,
        "dearest": 0,
    }


def test_money_is_never_exceeded(judge_server: Any, tmp_path: Path) -> None:
    chance = random.Random(0)
    with_usage(judge_server, lambda: chance.randint(500, 1500), lambda: chance.randint(10, 900))
    limits = budget(tmp_path, max_cost=0.1, prices=PRICES)
    with Scorer(["judge_accuracy"], workers=1, judge_budget=limits) as scorer:
        said = [
            refusal(scorer.submit([judge(judge_server.url)], answers(16, start)))
            for start in range(0, 64, 16)
        ]
    assert "of max_cost = 0.1 is spent" in said[-1]
    spent = sums(tmp_path)
    assert 0.05 < spent["cost"] <= 0.1
    used = 2e-6 * spent["input_tokens"] + 1e-5 * spent["output_tokens"]
    assert spent["cost"] == pytest.approx(used)


@pytest.mark.parametrize("usage", [None, "12", -1, True, 1.5, 1 << 50])
def test_money_cannot_be_counted_where_the_endpoint_does_not_say(
    usage: Any, judge_server: Any, tmp_path: Path
) -> None:
    with_usage(judge_server, usage)
    limited = judge(judge_server.url, budget=budget(tmp_path, max_cost=1, prices=PRICES).params())
    with pytest.raises(StopScoring, match="do not say how many tokens"):
        RewardManager([limited]).score(answers(1))
    counted = judge(judge_server.url, budget=budget(tmp_path, max_calls=9).params())
    assert RewardManager([counted]).score(answers(1))[0].total == 1


def test_spent_judges_are_left_out_of_whole_groups(judge_server: Any, tmp_path: Path) -> None:
    limits = budget(tmp_path, max_calls=6, on_exhausted="skip")
    rewards = [RewardSpec("json_valid", 0.25), judge(judge_server.url)]
    groups = [0] * 4 + [1] * 4
    with Scorer(["json_valid", "judge_accuracy"], workers=1, judge_budget=limits) as scorer:
        first = scorer.submit(rewards, answers(4), groups[:4]).results()
        later = scorer.submit(rewards, answers(4, 4), groups[4:]).results()
    assert [result.total for result in first] == [1.0] * 4
    assert [result.total for result in later] == [0.0] * 4  # the rule's alone, for all of them
    assert {result.values["judge_accuracy"] for result in later} == {None}
    assert "the budget of judges is spent" in later[0].notes["judge_accuracy"]
    assert not any(result.errors for result in later)
    assert len(judge_server.asked) == 6
    with pytest.raises(LeftOut):
        Purse(limits, "j").take(100, 10)


def test_a_server_says_so_and_its_clients_stop(
    judge_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTTRAIN_JUDGE_API_KEY", "sk-secret")
    config = ServerConfig.model_validate(
        {"rewards": ["judge_accuracy"], "judge_budget": {"ledger": tmp_path / "ledger.json", "max_calls": 2}}
    )
    with Scorer(config.references, workers=1, judge_budget=config.judge_budget) as scorer:
        app = TestClient(create_app(scorer, config, token="t"), headers={"Authorization": "Bearer t"})
        # A client cannot bring a budget of its own.
        larger = judge(judge_server.url, budget=budget(tmp_path, max_calls=99).params())
        body = wire.score_request([larger], answers(3), None)
        reply = app.post("/v1/score", content=body, headers={"Content-Type": "application/json"})
        assert reply.status_code == 402
        assert "all 2 calls of max_calls" in reply.json()["detail"]
        alone = reward_client.AsyncRewardClient("http://host", "t", wait=0)
        transport = reward_client.httpx.ASGITransport(app.app)
        alone._http = reward_client.httpx.AsyncClient(
            transport=transport, base_url="http://host", headers=alone._http.headers
        )
        with pytest.raises(reward_client.RewardRequestRefused, match=r"^the budget of judges is spent"):
            reward_client.asyncio.run(alone.score([larger], answers(1)))
    assert len(judge_server.asked) == 2
    assert "secret" not in (tmp_path / "ledger.json").read_text()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"calls": -1}', '{"calls": "1"}', '{"calls": NaN}', "\0"]
)
def test_a_ledger_that_cannot_be_read_is_no_empty_one(
    content: str, judge_server: Any, tmp_path: Path
) -> None:
    (tmp_path / "ledger.json").write_text(content)
    limited = judge(judge_server.url, budget=budget(tmp_path, max_calls=9).params())
    with pytest.raises(StopScoring, match=r"ledger\.json"):
        RewardManager([limited]).score(answers(1))
    assert judge_server.asked == []


def test_a_model_without_a_price_is_not_free(judge_server: Any, tmp_path: Path) -> None:
    limited = judge(judge_server.url, budget=budget(tmp_path, max_cost=1.0).params())
    with pytest.raises(StopScoring, match="there is none for"):
        RewardManager([limited]).score(answers(1))
    assert judge_server.asked == []


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({}, "ledger"),
        ({"ledger": "l", "max_calls": 0}, "max_calls"),
        ({"ledger": "l", "max_cost": 0}, "max_cost"),
        ({"ledger": "l", "prices": {"j": {"input": -1, "output": 0}}}, "prices.j.input"),
        ({"ledger": "l", "on_exhausted": "beg"}, "on_exhausted"),
        ({"ledger": "l", "maximum": 1}, "maximum"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(value: Any, says: str, tmp_path: Path) -> None:
    (tmp_path / "budget.json").write_text(json.dumps(value))
    with pytest.raises(RewardError, match=says):
        read_budget(tmp_path / "budget.json")
    [result] = RewardManager([judge("http://h/v1", budget=value)]).score(answers(1))
    assert says in result.errors["judge_accuracy"]


def test_a_configuration_s_ledger_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "rewards.yaml").write_text(
        "rewards: [judge]\njudge_budget: {ledger: spent.json, max_calls: 3}"
    )
    read = read_server_config(tmp_path / "rewards.yaml").judge_budget
    assert read is not None
    assert read.ledger == tmp_path / "spent.json"


def test_a_tally_loses_no_addition(tmp_path: Path) -> None:
    tally = Tally(tmp_path / "t.json")

    def add(_: int) -> None:
        tally.change(lambda held: {"n": held.get("n", 0.0) + 1})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(200)))
    assert tally.read() == {"n": 200.0}
    with pytest.raises(ChatError):
        tally.change(lambda _: (_ for _ in ()).throw(ChatError("no")))
    assert tally.read() == {"n": 200.0}
    with pytest.raises(TallyError):
        Tally(tmp_path / "absent" / "t.json").change(lambda held: held)
