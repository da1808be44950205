"""What runs inside a scoring process: load the rewards once, then score what the pipe brings.

Everything crosses the pipe as JSON, so nothing that a scorer does can reach the parent as code.
"""

import ctypes
import os
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path

from posttrain.plugins import PluginError
from rewards import wire
from rewards.manager import Outcome, evaluate
from rewards.sdk import Reward, load_reward

PR_SET_PDEATHSIG = 1


def work(pipe: Connection, references: list[str], base_dir: Path | None) -> None:
    """Score jobs until the pipe closes.

    The first message says what was loaded, `{"ready": [{name, low, high, summary}]}`, or why not,
    `{"failed": reason}`. A job is two messages, the rewards and the input; each reward is answered by one
    outcome.
    """
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent ends us
    try:
        rewards = {reference: load_reward(reference, base_dir) for reference in references}
    except PluginError as error:
        pipe.send_bytes(wire.dumps({"failed": str(error)}))
        return
    pipe.send_bytes(wire.dumps({"ready": [_describe(name, loaded) for name, loaded in rewards.items()]}))
    while True:
        try:
            specs, body = wire.loads(pipe.recv_bytes()), pipe.recv_bytes()
        except EOFError:
            return
        for spec in specs:
            # Read anew for each reward: one that changes its input must not reach the next.
            x = wire.input_from_json(wire.loads(body), "input")
            pipe.send_bytes(_reply(evaluate(rewards[spec["name"]], x, spec["params"])))


def _reply(outcome: Outcome) -> bytes:
    try:
        return wire.dumps(wire.outcome_to_json(outcome))
    except wire.WireError as error:  # a note or a part's name that is no text
        return wire.dumps(wire.outcome_to_json(Outcome(error=f"the verdict {error}")))


def _describe(name: str, loaded: Reward) -> dict[str, str | float]:
    return {"name": name, "low": loaded.low, "high": loaded.high, "summary": loaded.summary}


def _die_with_parent() -> None:
    """Ask Linux to kill this process when its parent ends, even inside a C function that hangs."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:  # it had ended before we asked
        os._exit(1)
