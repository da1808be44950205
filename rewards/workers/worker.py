"""What runs inside a scoring process: load the rewards once, then score what the pipe brings.

Everything crosses the pipe as JSON, so nothing that a scorer does can reach the parent as code.
"""

import asyncio
import math
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from posttrain.plugins import PluginError
from posttrain.sandbox import linux
from posttrain.types import RewardInput
from rewards import wire
from rewards.manager import Outcome, evaluate, failure
from rewards.parameters import parameters_of
from rewards.sdk import Reward, load_reward

#: Scoring yields to the server's event loop, which has to answer `/health` on a machine without a free core.
NICENESS = 5


def work(pipe: Connection, references: list[str], base_dir: Path | None) -> None:
    """Score one call after the other until the pipe closes.

    The first message says what was loaded, `{"ready": [{name, low, high, …}]}`, or why not,
    `{"failed": reason}`. A job is a header, `{"calls": [{"spec", "members"}], "inputs": n}`, and n episodes;
    each call is answered by the outcomes of its members.
    """
    os.nice(NICENESS)
    if (rewards := _load(pipe, references, base_dir)) is None:
        return
    while (job := _next_job(pipe)) is not None:
        header, bodies = job
        for call in header["calls"]:
            spec, xs = call["spec"], _read(bodies, call["members"])
            pipe.send_bytes(_reply(evaluate(rewards[spec["name"]], xs, spec["params"])))


def work_async(pipe: Connection, references: list[str], base_dir: Path | None) -> None:
    """Run many calls of async rewards at once until the pipe closes.

    The protocol is that of `work`, with one call a job, its `id` and its `deadline_s`; replies are
    `{"id", "outcomes"}` and come in any order.
    """
    if (rewards := _load(pipe, references, base_dir)) is not None:
        asyncio.run(_work_concurrently(pipe, rewards))


async def _work_concurrently(pipe: Connection, rewards: dict[str, Reward]) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    running: set[asyncio.Task[None]] = set()

    async def run(header: wire.JobHeader, bodies: list[bytes]) -> None:
        call = header["calls"][0]
        xs = _read(bodies, call["members"])
        loaded, params = rewards[call["spec"]["name"]], call["spec"]["params"]
        outcomes = await _evaluate_within(header.get("deadline_s", math.inf), loaded, xs, params)
        pipe.send_bytes(_reply(outcomes, header.get("id", 0)))

    def start(job: tuple[wire.JobHeader, list[bytes]]) -> None:
        task = loop.create_task(run(*job))
        running.add(task)  # the loop itself keeps no task alive
        task.add_done_callback(running.discard)

    def read() -> None:
        while (job := _next_job(pipe)) is not None:
            loop.call_soon_threadsafe(start, job)
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=read, daemon=True).start()
    await ended.wait()


async def _evaluate_within(
    deadline_s: float, loaded: Reward, xs: Sequence[RewardInput], params: Mapping[str, object]
) -> list[Outcome]:
    limit = asyncio.timeout(deadline_s)
    try:
        async with limit:
            return [Outcome(score) for score in await loaded.judge_async(xs, params)]
    except BaseException as error:  # plugins and their libraries also raise SystemExit and worse
        late = Outcome(error=f"took longer than its deadline of {deadline_s:g} s")
        return [late if limit.expired() else failure(error)] * len(xs)


def _load(pipe: Connection, references: list[str], base_dir: Path | None) -> dict[str, Reward] | None:
    """Load the rewards and say so, or say why not."""
    if sys.platform == "linux":
        linux.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent ends us
    try:
        rewards = {reference: load_reward(reference, base_dir) for reference in references}
    except PluginError as error:
        pipe.send_bytes(wire.dumps({"failed": str(error)}))
        return None
    pipe.send_bytes(wire.dumps({"ready": [_describe(name, loaded) for name, loaded in rewards.items()]}))
    return rewards


def _next_job(pipe: Connection) -> tuple[wire.JobHeader, list[bytes]] | None:
    """Read a header and its episodes; None once the parent has gone."""
    try:
        header = wire.loads(pipe.recv_bytes())
        return header, [pipe.recv_bytes() for _ in range(header["inputs"])]
    except (EOFError, OSError):
        return None


def _read(bodies: Sequence[bytes], members: Sequence[int]) -> list[RewardInput]:
    """Read a call's episodes anew for each call: one that changes its input must not reach the next."""
    return [wire.input_from_json(wire.loads(bodies[i]), "input") for i in members]


def _reply(outcomes: Sequence[Outcome], call_id: int = 0) -> bytes:
    def message(outcomes: Sequence[Outcome]) -> bytes:
        rows = [wire.outcome_to_json(outcome) for outcome in outcomes]
        return wire.dumps({"id": call_id, "outcomes": rows})

    try:
        return message(outcomes)
    except wire.WireError as error:  # a note or a part's name that is no text
        return message([Outcome(error=f"the verdict {error}")] * len(outcomes))


def _describe(name: str, loaded: Reward) -> wire.RewardInfo:
    return {
        "name": name,
        "low": loaded.low,
        "high": loaded.high,
        "group": loaded.group,
        "async": loaded.is_async,
        "deadline_s": loaded.deadline_s,
        "guarded": sorted(loaded.guarded),
        "params": parameters_of(loaded.function),
        "summary": loaded.summary,
    }
