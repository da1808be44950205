"""How fast the reward server is, and whether it leaks; math-verify called directly is timed in the same run.

    python scripts/bench_rewards.py                    all of it, about four minutes on 2 cores
    python scripts/bench_rewards.py --calls 5000       a shorter look at memory
    python scripts/bench_rewards.py --only load        one of the figures below
    python scripts/bench_rewards.py --check --json bench.json

Measured, each with its goal:
    throughput   maths rewards a second through the server (batches of 64, several under way) over those of
                 one process that calls math-verify directly, times the cores: at least 0.8. Both are timed
                 in turns; the ratio's spread over the rounds is shown.
    overhead     milliseconds of one request with one episode, after another.
    load         64 clients, each with one request of one episode under way: p99 below 250 ms, /health 50 ms.
    memory       growth of the server and its workers over 100,000 episodes: below 50 MB.
"""

import argparse
import asyncio
import http.client
import itertools
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import benchmark
import psutil
from tqdm import tqdm

from posttrain.types import RewardInput, text_message
from rewards.serving.client import AsyncRewardClient
from rewards.serving.launch import RewardServer, start_server

BATCH = 64
SPEC = {"name": "math"}
GOALS = {
    "throughput_ratio": (">=", 0.8),
    "load_p99_ms": ("<=", 250.0),
    "load_health_p99_ms": ("<=", 50.0),
    "memory_growth_mb": ("<=", 50.0),
}
#: What one process does that calls math-verify by itself, in a process of its own, as a user's would be.
PEER = """
import json, sys, time
from math_verify import parse, verify
pairs = json.load(sys.stdin)
for gold, answer in pairs[:20]:
    verify(parse(gold), parse(answer))
begun = time.perf_counter()
for gold, answer in pairs:
    verify(parse(gold), parse(answer))
print(time.perf_counter() - begun)
"""


def pairs(count: int) -> list[tuple[str, str]]:
    """Golds and answers of the common kinds, right and wrong in turns, none twice."""
    kinds = [
        lambda i: (rf"${i}$", rf"So the answer is $\boxed{{{i}}}$."),
        lambda i: (rf"$\frac{{{i}}}{{{i + 1}}}$", rf"Hence \boxed{{{i / (i + 1):.8f}}}"),
        lambda i: (rf"$\sqrt{{{i + 2}}}$", rf"Thus \boxed{{\sqrt{{{i + 3}}}}}"),
        lambda i: (rf"$x^2+{i}x$", rf"It factors as \boxed{{x(x+{i})}}"),
        lambda i: (rf"$({i},{i + 1}]$", rf"The interval is \boxed{{({i},{i + 1})}}"),
        lambda i: (rf"$\{{{i},{i + 1},{i + 2}\}}$", rf"\boxed{{\{{{i + 2},{i},{i + 1}\}}}}"),
        lambda i: (rf"${i}\%$", rf"This is \boxed{{{i / 100}}}"),
        lambda i: (rf"${i}\pi$", rf"The area is \boxed{{{i}\pi}}"),
    ]
    made = (kind(i) for i in itertools.count(1) for kind in kinds)
    return list(itertools.islice(made, count))


def episodes(cases: Sequence[tuple[str, str]]) -> list[RewardInput]:
    """The pairs as finished episodes."""
    prompt = (text_message("user", "Solve it. Put the answer into a box."),)
    return [RewardInput(prompt, (text_message("assistant", a),), a, ground_truth=g) for g, a in cases]


def peer_seconds(cases: Sequence[tuple[str, str]]) -> float:
    """Seconds that math-verify takes in one process."""
    command = [sys.executable, "-c", PEER]
    done = subprocess.run(command, input=json.dumps(cases).encode(), capture_output=True, check=True)
    return float(done.stdout)


async def throughput(server: RewardServer, rounds: int, size: int) -> dict[str, Any]:
    """The server against math-verify, in turns; each round has pairs of its own, so nothing is cached."""
    cores = os.cpu_count() or 1
    cases = pairs(rounds * size)
    ratios, ours, theirs = [], [], []
    async with AsyncRewardClient(server.url, server.token, requests=2 * cores) as client:
        await client.score([SPEC], episodes(pairs(BATCH)))
        for i in tqdm(range(rounds), desc="throughput", unit="round"):
            part = cases[i * size : (i + 1) * size]
            theirs.append(size / peer_seconds(part))
            inputs = episodes(part)
            begun = time.perf_counter()
            await client.score([SPEC], inputs)
            ours.append(size / (time.perf_counter() - begun))
            ratios.append(ours[-1] / (cores * theirs[-1]))
    return {
        "throughput_server_per_s": statistics.median(ours),
        "throughput_math_verify_per_s": statistics.median(theirs),
        "cores": cores,
        "throughput_ratio": statistics.median(ratios),
        "throughput_ratio_spread": [min(ratios), max(ratios)],
    }


async def overhead(server: RewardServer, calls: int = 300) -> dict[str, Any]:
    """One small request after the other."""
    inputs = episodes([("7", "8")])
    times = []
    async with AsyncRewardClient(server.url, server.token) as client:
        for _ in tqdm(range(calls), desc="overhead", unit="call"):
            begun = time.perf_counter()
            await client.score([{"name": "answer_accuracy"}], inputs)
            times.append(1000 * (time.perf_counter() - begun))
    return {
        "overhead_ms": statistics.median(times),
        "overhead_p99_ms": statistics.quantiles(times, n=100)[98],
    }


async def load(server: RewardServer, seconds: float, clients: int = 64) -> dict[str, Any]:
    """Many clients at once, and one that asks how the server is."""
    times: list[float] = []

    async def ask(client: AsyncRewardClient, inputs: Sequence[RewardInput]) -> None:
        await client.score([SPEC], inputs[:1])
        for i in itertools.count():
            if (begun := time.perf_counter()) > end:
                return
            await client.score([SPEC], [inputs[i % len(inputs)]])
            times.append(1000 * (time.perf_counter() - begun))

    inputs = episodes(pairs(512))
    all_clients = [AsyncRewardClient(server.url, server.token) for _ in range(clients)]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as other:
        other.submit(watch_health, server.url, server.token, 0.1).result()  # its start is no load
        end = time.perf_counter() + seconds
        health = other.submit(watch_health, server.url, server.token, seconds)
        await asyncio.gather(*(ask(c, inputs[i:] + inputs[:i]) for i, c in enumerate(all_clients)))
    for client in all_clients:
        await client.close()
    quantiles = statistics.quantiles(times, n=100)
    return {
        "load_clients": clients,
        "load_requests_per_s": len(times) / seconds,
        "load_p50_ms": quantiles[49],
        "load_p99_ms": quantiles[98],
        "load_health_p99_ms": statistics.quantiles(health.result(), n=100)[98],
    }


def watch_health(url: str, token: str, seconds: float) -> list[float]:
    """Milliseconds of each /health, asked over a plain connection by a process that does nothing else."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    end = time.perf_counter() + seconds
    times = []
    while (begun := time.perf_counter()) < end:
        connection.request("GET", "/health", headers=headers)
        reply = connection.getresponse()
        reply.read()
        times.append(1000 * (time.perf_counter() - begun))
        assert reply.status == 200
        time.sleep(0.02)
    connection.close()
    return times


async def memory(server: RewardServer, calls: int) -> dict[str, Any]:
    """The server's and its workers' memory at the start and at the end."""
    inputs = episodes(pairs(1024))
    async with AsyncRewardClient(server.url, server.token, requests=4) as client:
        await client.score([SPEC], inputs)  # what is loaded when first used is no leak
        before = resident_mb(server)
        for _ in tqdm(range(-(-calls // len(inputs))), desc="memory", unit="kilocall"):
            await client.score([SPEC], inputs)
        after = resident_mb(server)
    return {
        "memory_calls": calls,
        "memory_start_mb": before,
        "memory_end_mb": after,
        "memory_growth_mb": after - before,
    }


def resident_mb(server: RewardServer) -> float:
    """Memory of the server and all its processes, shared pages divided between those that share them."""
    parent = psutil.Process(server.process.pid)
    return sum(p.memory_full_info().pss for p in [parent, *parent.children(recursive=True)]) / 2**20


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every figure, or those of `--only`."""
    figures: dict[str, Any] = {}
    with start_server(["math", "answer_accuracy"]) as server:
        for name in options.only or PARTS:
            figures |= await PARTS[name](server, options)
    return figures


PARTS: dict[str, Callable[[RewardServer, argparse.Namespace], Awaitable[dict[str, Any]]]] = {
    "throughput": lambda server, options: throughput(server, options.rounds, options.size),
    "overhead": lambda server, _: overhead(server),
    "load": lambda server, options: load(server, seconds=options.seconds),
    "memory": lambda server, options: memory(server, options.calls),
}


def main() -> int:
    """Measure, print and compare."""
    parser = benchmark.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="turns of server and math-verify (default: 5)")
    parser.add_argument("--size", type=int, default=1024, help="pairs in a round (default: 1024)")
    parser.add_argument(
        "--calls", type=int, default=100_000, help="episodes for the memory (default: 100,000)"
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="of the load (default: 20)")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="measure these (default: all)")
    options = parser.parse_args()
    return benchmark.report(asyncio.run(measure(options)), GOALS, options)


if __name__ == "__main__":
    sys.exit(main())
