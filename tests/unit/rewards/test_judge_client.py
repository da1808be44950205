"""The judge's client against a real server that fails in every way it can: no failure becomes a score."""

import asyncio
import email.utils
import gc
import json
import multiprocessing
import random
import time
from pathlib import Path
from typing import Any

import pytest

from posttrain.chat_endpoint import digest, retry_after
from posttrain.types import Message, RewardInput, Score, text_message
from rewards.builtin.judge import judge, judge_accuracy
from rewards.judge import Endpoint, JudgeError, client
from rewards.judge.cache import SHARDS, VerdictCache

HONEST = {"model": "j", "cache_dir": None}
QUESTION = (text_message("user", "What does the sign say?"),)


def episode(answer: str, gold: Any = "PUSH", prompt: tuple[Message, ...] = QUESTION) -> RewardInput:
    return RewardInput(prompt, (text_message("assistant", f"Reading. {answer}"),), answer, gold)


def score(reward: Any, x: RewardInput, **params: Any) -> Score:
    scored = reward(x, **(HONEST | params))
    assert scored is not None
    return scored


async def score_all(reward: Any, xs: list[RewardInput], **params: Any) -> list[Any]:
    calls = [reward.judge_async([x], HONEST | params) for x in xs]
    done = await asyncio.gather(*calls, return_exceptions=True)
    return [one if isinstance(one, BaseException) else one[0] for one in done]


# Failures are never scores (row 10 of posttrain/RELIABILITY.md)

FAULTS = (
    "429",
    "429 date",
    "500",
    "503",
    "nonsense",
    "html",
    "truncated",
    "cut off",
    "null",
    "stall",
    "hang up",
)
FAULTS += (
    "wrong schema",
    "missing aspect",
    "out of range",
    "negative",
    "text score",
    "other nonce",
    "twice",
    "huge",
)


def misbehave(judge_server: Any, fault: str, request: dict[str, Any]) -> Any:
    honest = judge_server.honest(request)
    verdict = json.loads(honest)
    aspect = next(iter(verdict["scores"]))
    date = email.utils.formatdate(time.time(), usegmt=True)
    twice = honest.replace(f'"{aspect}":', f'"{aspect}": 0, "{aspect}":')
    return {
        "429": lambda: judge_server.send(b"slow down", 429, Retry_After="0.01"),
        "429 date": lambda: judge_server.send(b"slow down", 429, Retry_After=date),
        "500": lambda: judge_server.send(b'{"scores": {"correct": 0}}', 500),
        "503": lambda: judge_server.send(b"", 503, Retry_After="soon"),
        "nonsense": lambda: judge_server.say("I give it 0 out of 10."),
        "html": lambda: judge_server.send(b"<html>0</html>"),
        "truncated": lambda: judge_server.say(honest[:-3]),
        "cut off": lambda: judge_server.say(honest, "length"),
        "null": lambda: judge_server.say(None),
        "stall": lambda: judge_server.send(b"", stall_s=1.0),
        "hang up": lambda: judge_server.send(b"{", length=100),
        "wrong schema": lambda: judge_server.say(json.dumps({"nonce": verdict["nonce"], "score": 0})),
        "missing aspect": lambda: judge_server.say(json.dumps(verdict | {"scores": {}})),
        "out of range": lambda: judge_server.say(json.dumps(verdict | {"scores": {aspect: 11}})),
        "negative": lambda: judge_server.say(json.dumps(verdict | {"scores": {aspect: -1}})),
        "text score": lambda: judge_server.say(json.dumps(verdict | {"scores": {aspect: "0"}})),
        "other nonce": lambda: judge_server.say(json.dumps(verdict | {"nonce": "0" * 16})),
        "twice": lambda: judge_server.say(twice),
        "huge": lambda: judge_server.send(b" " * (client.MAX_REPLY_BYTES + 1)),
    }[fault]()


@pytest.mark.parametrize("fault", FAULTS)
def test_each_failure_is_tried_again_and_then_raised(fault: str, judge_server: Any) -> None:
    judge_server.behave = lambda request: misbehave(judge_server, fault, request)
    with pytest.raises(JudgeError, match="in 2 attempts"):
        score(judge_accuracy, episode("PULL"), max_attempts=2, timeout_s=0.15 if fault == "stall" else 5)
    assert len(judge_server.asked) == 2


def test_no_failure_of_six_hundred_becomes_a_score(judge_server: Any) -> None:
    chance, faults = random.Random(0), 0

    def behave(request: dict[str, Any]) -> Any:
        nonlocal faults
        if chance.random() < 0.4:
            return judge_server.say(judge_server.honest(request))
        faults += 1
        return misbehave(judge_server, chance.choice(FAULTS), request)

    judge_server.behave = behave
    xs = [episode(f"PULL {i}") for i in range(300)]
    scored = asyncio.run(score_all(judge_accuracy, xs, max_attempts=3, timeout_s=0.8))
    errors = [one for one in scored if isinstance(one, Exception)]
    assert len(judge_server.asked) >= 500
    assert faults >= 300
    assert 20 <= len(errors) <= 150
    assert all(isinstance(error, JudgeError) for error in errors)
    assert [one.value for one in scored if isinstance(one, Score)] == [1.0] * (300 - len(errors))


@pytest.mark.parametrize(
    ("status", "says"),
    [(400, "temperature"), (401, "POSTTRAIN_JUDGE_URL"), (404, "no such model"), (302, "redirects")],
)
def test_a_refusal_is_raised_at_once_with_the_remedy(status: int, says: str, judge_server: Any) -> None:
    elsewhere = {"Location": judge_server.url + "/chat/completions"}
    judge_server.behave = lambda request: judge_server.send(b"no such model", status, **elsewhere)
    with pytest.raises(JudgeError, match=says):
        score(judge_accuracy, episode("PULL"))
    assert len(judge_server.asked) == 1


def test_nobody_at_home_is_an_error(judge_server: Any) -> None:
    with pytest.raises(JudgeError, match="connection attempts failed"):
        score(judge_accuracy, episode("PULL"), base_url="http://127.0.0.1:9/v1", max_attempts=2)


def test_retry_after_is_kept_to(judge_server: Any) -> None:
    times: list[float] = []

    def behave(request: dict[str, Any]) -> Any:
        times.append(time.monotonic())
        busy = judge_server.send(b"", 429, Retry_After="0.3")
        return busy if len(times) == 1 else judge_server.say(judge_server.honest(request))

    judge_server.behave = behave
    assert score(judge_accuracy, episode("PULL")).value == 1
    assert times[1] - times[0] >= 0.3


def test_a_wait_beyond_the_deadline_is_not_waited_for(judge_server: Any) -> None:
    judge_server.behave = lambda request: judge_server.send(b"", 429, Retry_After="3600")
    started = time.monotonic()
    with pytest.raises(JudgeError, match="in 1 attempts"):
        score(judge_accuracy, episode("PULL"))
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [("2", 2, 2), ("-5", 0, 0), ("", 0, 0), ("nan", 0, 0), ("inf", 0, 0), ("Wed, 99", 0, 0), ("now", 0, 50)],
)
def test_retry_after_in_every_form(value: str, low: float, high: float) -> None:
    if value == "now":
        value = email.utils.formatdate(time.time() + 40, usegmt=True)
        low = 30
    assert low <= retry_after(value) <= high


# Concurrency, event loops and the cache


def test_no_more_requests_at_once_than_allowed(judge_server: Any) -> None:
    judge_server.behave = lambda request: judge_server.send(
        judge_server.say(judge_server.honest(request)).body, stall_s=0.02
    )
    xs = [episode(f"PULL {i}") for i in range(20)]
    scored = asyncio.run(score_all(judge_accuracy, xs, concurrency=3))
    assert [one.value for one in scored] == [1.0] * 20
    assert judge_server.most_at_once == 3


def test_every_event_loop_has_connections_of_its_own_and_closes_them(
    judge_server: Any, recwarn: pytest.WarningsRecorder
) -> None:
    gc.collect()
    recwarn.clear()  # of what tests before have left
    for i in range(3):
        assert score(judge_accuracy, episode(f"PULL {i}")).value == 1  # a loop each

    async def long_lived() -> None:
        for _ in range(2):
            assert [
                s.value for s in await score_all(judge_accuracy, [episode(f"PULL {i}") for i in range(4)])
            ] == [1] * 4
            assert client._connections[asyncio.get_running_loop()] == {}

    asyncio.run(long_lived())
    gc.collect()
    assert all(not used for used in client._connections.values())
    assert [str(warning.message) for warning in recwarn if warning.category is ResourceWarning] == []


def test_a_cancelled_call_leaves_nothing_behind(judge_server: Any) -> None:
    judge_server.behave = lambda request: judge_server.send(b"", stall_s=5)

    async def cancel() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await judge_accuracy.judge_async([episode("PULL")], HONEST)
        assert client._connections[asyncio.get_running_loop()] == {}

    asyncio.run(cancel())


def test_a_verdict_is_asked_for_once(judge_server: Any, tmp_path: Path) -> None:
    judge_server.verdict = lambda aspect: 7
    kept = {"cache_dir": str(tmp_path)}
    first = score(judge, episode("PULL"), **kept)
    judge_server.verdict = lambda aspect: 3
    assert score(judge, episode(" PULL "), **kept) == first
    assert first.value == pytest.approx(0.7)
    assert len(judge_server.asked) == 1
    for changed in ({"model": "k"}, {"request": {"seed": 1}}, {"weights": {"clarity": 0}}):
        assert score(judge, episode("PULL"), **(kept | changed)).value == pytest.approx(0.3)
    assert score(judge, episode("PULL", "SHUT"), **kept).value == pytest.approx(0.3)
    assert len(judge_server.asked) == 5


def test_failures_and_damaged_entries_are_not_kept(judge_server: Any, tmp_path: Path) -> None:
    kept = {"cache_dir": str(tmp_path), "max_attempts": 1}
    judge_server.behave = lambda request: judge_server.say("nonsense")
    with pytest.raises(JudgeError):
        score(judge_accuracy, episode("PULL"), **kept)
    assert list(tmp_path.rglob("*.json")) == []
    judge_server.behave = None
    assert score(judge_accuracy, episode("PULL"), **kept).value == 1
    (entry,) = tmp_path.rglob("*.json")
    good = json.loads(entry.read_text())
    damaged = ["", "{", "[]", json.dumps(good | {"key": "0"}), json.dumps(good | {"verdict": [0]})]
    damaged += [json.dumps(good | {"verdict": {"reason": "", "scores": {"correct": 2}}})]
    for text in damaged:
        entry.write_text(text)
        asked = len(judge_server.asked)
        assert score(judge_accuracy, episode("PULL"), **kept).value == 1
        assert len(judge_server.asked) == asked + 1
        assert json.loads(entry.read_text()) == good


def test_a_cache_that_cannot_be_written_costs_no_verdict(
    judge_server: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    assert score(judge_accuracy, episode("PULL"), cache_dir=str(tmp_path / "file" / "cache")).value == 1
    assert "cannot be kept" in caplog.text


def fill(directory: str, start: int) -> None:
    cache = VerdictCache(Path(directory), max_entries=SHARDS * 4)
    for i in range(400):
        key = digest(["shared", (start + i) % 500])
        cache.put(key, {"reason": key})
        found = cache.get(key)
        assert found in (None, {"reason": key})


def test_the_cache_is_bounded_and_shared_by_processes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=fill, args=(str(tmp_path), 100 * i)) for i in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    cache = VerdictCache(tmp_path, max_entries=SHARDS)
    assert cache.per_shard == 1
    for i in range(50):
        cache.put("ab" + digest(i)[2:], {"reason": "x"})
    assert len(list((tmp_path / "ab").iterdir())) == 1
    cache.put("ab" + digest("large")[2:], {"reason": "x" * 20_000})
    assert cache.get("ab" + digest("large")[2:]) is None
    assert list(tmp_path.rglob("*.tmp")) == []


# Keys and addresses


def test_the_key_goes_only_to_the_address_beside_it(
    judge_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(client.KEY_VARIABLE, "sk-secret")
    score(judge_accuracy, episode("PULL"))
    assert judge_server.headers[-1]["authorization"] == "Bearer sk-secret"
    score(judge_accuracy, episode("PULL"), base_url=judge_server.url + "/")
    assert judge_server.headers[-1]["authorization"] == "Bearer sk-secret"
    judge_server.behave = lambda request: judge_server.send(b"the key sk-secret is wrong", 401)
    with pytest.raises(JudgeError) as raised:
        score(judge_accuracy, episode("PULL"))
    assert "sk-secret" not in str(raised.value)
    judge_server.behave = None
    monkeypatch.setenv(client.URL_VARIABLE, "https://judge.example/v1")
    score(judge_accuracy, episode("PULL"), base_url=judge_server.url)
    assert "authorization" not in judge_server.headers[-1]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("base_url", "ftp://h/v1"),
        ("base_url", "file:///etc/passwd"),
        ("base_url", "http://me:pw@h/v1"),
        ("base_url", "http://"),
        ("base_url", "h:1/v1?x=1"),
        ("base_url", "http://h:port/v1"),
        ("timeout_s", 0),
        ("timeout_s", float("nan")),
        ("max_attempts", -1),
        ("concurrency", 0),
        ("request", {"messages": []}),
    ],
)
def test_an_endpoint_that_cannot_work_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        Endpoint(**{"model": "j", "base_url": "http://h/v1", field: value})


def test_without_an_address_the_message_says_where_to_put_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(client.URL_VARIABLE, raising=False)
    with pytest.raises(ValueError, match="POSTTRAIN_JUDGE_URL"):
        Endpoint("j")


def test_fields_of_the_request_can_be_changed_and_taken_out(judge_server: Any) -> None:
    wanted = {"temperature": None, "max_tokens": None, "max_completion_tokens": 99}
    score(judge_accuracy, episode("PULL"), request=wanted)
    (request,) = judge_server.asked
    assert request.keys() & {"temperature", "max_tokens"} == set()
    assert request["max_completion_tokens"] == 99


def test_thinking_and_one_fence_around_a_verdict_are_taken_off(judge_server: Any) -> None:
    def behave(request: dict[str, Any]) -> Any:
        return judge_server.say(f"<think>Well {{}}</think>\n```json\n{judge_server.honest(request)}\n```\n")

    judge_server.behave = behave
    assert score(judge_accuracy, episode("PULL")).value == 1
