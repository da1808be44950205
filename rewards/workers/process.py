"""One scoring process and the pipe to it: it can hang, crash or be killed without harm to its parent."""

import contextlib
import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from posttrain.plugins import PluginError, declared
from rewards import wire

#: A verdict larger than this is a fault of the reward.
MAX_REPLY_BYTES = 1 << 24
#: Loading a plugin file may import much; scoring has its own, shorter deadline.
LOAD_TIMEOUT_S = 60.0

_CONTEXT = multiprocessing.get_context("forkserver")


class WorkerLost(RuntimeError):
    """A scoring process hung past its deadline, or died."""


class ScoringProcess:
    """A process that loads rewards and then answers what is sent to it.

    Args:
        target: What runs in it, such as `rewards.workers.worker.work`.
        references: The rewards that it loads.
        base_dir: Folder against which file references are resolved.

    Attributes:
        pipe: Our end of the connection.
        samples: How many episodes it has been sent.
    """

    def __init__(self, target: Callable[..., None], references: Sequence[str], base_dir: Path | None):
        self.pipe, theirs = _CONTEXT.Pipe()
        self.samples = 0
        self._process = _CONTEXT.Process(
            target=target, args=(theirs, list(references), base_dir), daemon=True
        )
        self._process.start()
        theirs.close()  # so that its death is the end of our file

    @classmethod
    def started(
        cls, target: Callable[..., None], references: Sequence[str], base_dir: Path | None
    ) -> "ScoringProcess":
        """Start a process and wait until it has loaded its rewards.

        Raises:
            PluginError: If a reward could not be loaded.
            WorkerLost: If loading hung or killed the process.
        """
        process = cls(target, references, base_dir)
        try:
            process.wait_until_ready()
        except (PluginError, WorkerLost):
            process.kill()
            raise
        return process

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.is_alive()

    def wait_until_ready(self) -> list[wire.RewardInfo]:
        """Wait until the rewards are loaded; return what they say of themselves.

        Raises:
            PluginError: If a reward could not be loaded.
            WorkerLost: If loading hung or killed the process.
        """
        message = self.receive(LOAD_TIMEOUT_S)
        if "failed" in message:
            raise PluginError(message["failed"])
        return message["ready"]

    def send(self, header: wire.JobHeader, bodies: Sequence[bytes]) -> None:
        """Hand over calls and the episodes that they judge, each episode as JSON.

        Raises:
            WorkerLost: If the process has died.
        """
        self.samples += len(bodies)
        try:
            self.pipe.send_bytes(wire.dumps(header))
            for body in bodies:
                self.pipe.send_bytes(body)
        except OSError:
            raise self._lost() from None

    def receive(self, timeout_s: float) -> Any:
        """Wait for the next message.

        Raises:
            WorkerLost: If none came in time, or the process died or wrote nonsense.
        """
        if not wait([self.pipe], timeout_s):
            raise WorkerLost(f"took longer than its deadline of {timeout_s:g} s and was killed")
        try:
            return wire.loads(self.pipe.recv_bytes(MAX_REPLY_BYTES))
        except (EOFError, OSError, wire.WireError):
            raise self._lost() from None

    def end(self) -> None:
        """End the process, whatever it is doing; the pipe stays for a thread that may be reading it."""
        with contextlib.suppress(OSError):
            self._process.kill()
        self._process.join()

    def kill(self) -> None:
        """End the process and close the pipe."""
        self.end()
        self.pipe.close()

    def _lost(self) -> WorkerLost:
        self._process.join(5)  # for its exit code, where it is about to die
        return WorkerLost(f"ended its scoring process (exit code {self._process.exitcode})")


def preload(references: Sequence[str]) -> None:
    """Have processes forked from one that has imported these built-in rewards: a start takes milliseconds."""
    modules = declared("posttrain.rewards")
    own = [modules[name].partition(":")[0] for name in references if name in modules]
    builtin = [name for name in own if name.startswith("rewards.builtin.")]
    _CONTEXT.set_forkserver_preload(["rewards.workers.worker", *builtin])
