"""Rows 5, 6, 7, 9 of posttrain/RELIABILITY.md on a real server: malformed requests, hangs, load, attacks.

The full numbers take minutes: `scripts/test.sh --soak -k reliability`. Without it they are small.
"""

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from posttrain.types import RewardInput
from rewards.kit.attacks import ATTACKS
from rewards.serving.client import RewardClient
from rewards.serving.launch import RewardServer, start_server

PLUGIN = """
import re, time
from rewards import reward
from rewards.reading.answers import final_answer

@reward("letter", deadline_s=1.0)
def letter(x):
    if x.answer == "hang":
        time.sleep(1000)
    if x.answer == "regex bomb":
        re.match(r"(a|a)*$", "a" * 60 + "b")
    if x.answer == "sympy bomb":
        import sympy
        sympy.factorial(10**9).evalf()
    return float(final_answer(x.answer) == x.ground_truth)
"""
SPEC = [{"name": "mine.py:letter"}]
BENCHMARK = Path(__file__).parents[2] / "scripts" / "bench_rewards.py"
#: Numbers that the speed of the machine is measured by, and the seconds for which the goals were set.
LOOP, LOOP_S = 200_000, 0.012
BOMBS = ("hang", "regex bomb", "sympy bomb")
GOOD = {
    "rewards": [{"name": "math"}],
    "inputs": [{"prompt": [], "response": [], "answer": "7", "ground_truth": "7"}],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RewardServer]:
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "mine.py").write_text(PLUGIN)
    with start_server(["math", "mine.py:letter", "code"], base_dir=folder, log=folder / "log") as server:
        yield server
        assert "Traceback" not in (folder / "log").read_text()


def mutations(seed: int, count: int) -> Iterator[bytes]:
    """Requests that are almost right: bytes changed, cut, doubled, or a value replaced by another kind."""
    chooser = random.Random(seed)
    whole = json.dumps(GOOD).encode()
    odd: list[Any] = [
        None,
        True,
        -1,
        1e308,
        "",
        "\ud800",
        [],
        {},
        [[]],
        {"a": 1},
        "0" * 1000,
        *ATTACKS.values(),
    ]
    for _ in range(count):
        kind = chooser.randrange(4)
        if kind == 0:
            body = bytearray(whole)
            for _ in range(chooser.randint(1, 5)):
                body[chooser.randrange(len(body))] = chooser.randrange(256)
            yield bytes(body)
        elif kind == 1:
            yield whole[: chooser.randrange(len(whole))]
        else:
            request = json.loads(whole)
            place = chooser.choice([request, request["rewards"][0], request["inputs"][0]])
            place[chooser.choice([*place, "extra", "weight", "params", "columns", "groups"])] = (
                chooser.choice(odd)
            )
            yield json.dumps(request).encode()


def test_row_5_malformed_requests_never_crash_the_server(server: RewardServer, soak: bool) -> None:
    headers = {"Authorization": f"Bearer {server.token}", "Content-Type": "application/json"}
    seen: dict[int, int] = {}
    with httpx.Client(base_url=server.url, headers=headers, timeout=60, trust_env=False) as http:
        for body in mutations(5, 10_000 if soak else 400):
            status = http.post("/v1/score", content=body).status_code
            seen[status] = seen.get(status, 0) + 1
        assert http.get("/health").json()["status"] == "ok"
    assert set(seen) <= {200, 400, 422}, seen
    assert seen[400] > sum(seen.values()) / 3
    assert server.process.poll() is None


def test_row_6_hangs_and_bombs_cost_only_themselves(server: RewardServer, soak: bool) -> None:
    bad, good = (1000, 9000) if soak else (12, 400)
    answers = [random.Random(i).choice(BOMBS) for i in range(bad)] + ["K"] * (good // 2) + ["X"] * (good // 2)
    random.Random(6).shuffle(answers)
    client = RewardClient(server.url, server.token, timeout=600)
    results = client.score(SPEC, [RewardInput((), (), answer, "K") for answer in answers])
    client.close()
    for answer, result in zip(answers, results, strict=True):
        if answer in BOMBS:
            assert result.total is None
            assert "deadline" in result.errors["mine.py:letter"]
        else:
            assert result.total == float(answer == "K")


@pytest.mark.alone
def test_row_7_answers_come_in_time_under_load(tmp_path: Path, soak: bool) -> None:
    """Whatever else the machine does can only add time, so one round within the limits will do."""
    found = tmp_path / "figures.json"
    seconds = ["--seconds", "20" if soak else "3"]
    rounds: list[dict[str, float]] = []
    goals: dict[str, float] = {}
    for _ in range(6):
        allowed = slowdown()
        subprocess.run([sys.executable, BENCHMARK, "--only", "load", *seconds, "--json", found], check=True)
        figures = json.loads(found.read_text())
        assert figures["load_clients"] == 64
        goals = {name: figures["goals"][name][1] for name in ("load_p99_ms", "load_health_p99_ms")}
        rounds.append({name: figures[name] / allowed for name in goals})
        if all(rounds[-1][name] <= goal for name, goal in goals.items()):
            return
    pytest.fail(f"no round reached the goals {goals}: {rounds}")


def slowdown() -> float:
    """How many times as long as when the goals were set things take at the moment; at least 1."""

    def loop() -> float:
        begun = time.process_time()
        sum(number * number for number in range(LOOP))
        return time.process_time() - begun

    return max(1.0, min(loop() for _ in range(5)) / LOOP_S)


def test_row_9_attacks_carry_nothing_over(server: RewardServer, soak: bool) -> None:
    client = RewardClient(server.url, server.token, timeout=600)
    tests = {"fn_name": "f", "inputs": [[1], [2]], "outputs": [2, 4]}
    patch = "import builtins\nbuiltins.abs = lambda *a: 2\nclass All:\n    __eq__ = lambda s, o: True"
    attack = RewardInput((), (), f"```python\n{patch}\ndef f(x):\n    return All()\n```", tests)
    wrong = RewardInput((), (), "```python\ndef f(x):\n    return x + 7\n```", tests)
    wrong_sum = [RewardInput((), (), f"\\boxed{{{i}}}", "-1") for i in range(1000)]
    attacks = [RewardInput((), (), text, "-1") for text in ATTACKS.values()]
    code = client.score([{"name": "code"}], [attack, *[wrong] * (1000 if soak else 40)])
    maths = client.score([{"name": "math"}], [*attacks, *wrong_sum])
    client.close()
    assert {result.total for result in code} == {0.0}
    assert {result.total for result in maths} <= {0.0, None}
    assert {result.total for result in maths[len(attacks) :]} == {0.0}
