"""An rl stage as a user runs it, in processes of its own that a test kills."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import psutil
import yaml

from posttrain.config import load_dataset_config
from posttrain.run.rows import METRICS, ROLLOUTS, EpisodeRow, MetricsRow, read_rows
from tests.integration.conftest import MAX_LENGTH

STAGE, GROUP_SIZE, PROMPTS, STEPS = "rl", 4, 2, 8
#: Seconds without anything new, beyond the longest such time of an undisturbed run, that count as a hang.
HANG_S = 60.0
#: Seconds in which no engine, learner or reward server may be left once the driver is gone.
GONE_S = 60.0

#: What the processes of each kind are called: Ray names those of actors by their class.
KINDS: dict[str, Callable[[Sequence[str]], bool]] = {
    "engine": lambda command: command[0].startswith("ray::RolloutWorker"),
    "teacher": lambda command: command[0].startswith("ray::InferenceWorker"),
    "learner": lambda command: command[0].startswith("ray::LearnerActor"),
    "rewards": lambda command: {"rewards", "serve"} <= set(command),
}


@dataclass(frozen=True)
class Kill:
    """What is killed, and when.

    Attributes:
        kind: `engine`, `engines` (all at once), `teacher`, `learner`, `rewards` or `driver`.
        learned: The number of steps that the attempt has learned by then, at the least.
        delay: Seconds after that.
    """

    kind: str
    learned: int
    delay: float

    @property
    def ends_the_run(self) -> bool:
        """Whether the run cannot go on without what is killed."""
        return self.kind not in ("engine", "engines", "teacher")


def write_recipe(folder: Path, checkpoint: Path, **changes: Any) -> Path:
    """Write a recipe of one rl stage, and the little dataset that it learns from.

    Args:
        folder: Where the recipe, the dataset and the run are.
        checkpoint: The model.
        **changes: Settings of the stage; those of `rollout` are added to the usual ones.
    """
    rollout = {
        "max_new_tokens": 16,
        "max_length": MAX_LENGTH,
        "engine": {"kv_cache_gb": 0.25, "max_num_seqs": 64},
        **changes.pop("rollout", {}),
    }
    shorter = {"name": "overlong", "params": {"limit": 16, "soft": 15, "unit": "tokens"}}  # is better
    stage = {
        "stage": STAGE,
        "algorithm": {"name": "sapo", "group_size": GROUP_SIZE},
        "tasks": [{"data": "markers_train", "rewards": [shorter]}],
        "prompts_per_step": PROMPTS,
        "max_steps": STEPS,
        "save_steps": 2,
        "learning_rate": 1e-3,
        "num_workers": 1,
    }
    settings = {
        "name": "run",
        "output_dir": str(folder),
        "model": {"name_or_path": str(checkpoint), "dtype": "float32"},
        "cluster": {"num_cpus": 2},
        "reward_wait_s": 3,
        "stages": [stage | changes | {"rollout": rollout}],
    }
    dataset = load_dataset_config("markers_train").model_dump(exclude_unset=True)
    dataset["source"]["params"]["count"] = 24
    (folder / "datasets_cfg").mkdir(parents=True)
    (folder / "datasets_cfg" / "markers_train.yaml").write_text(yaml.safe_dump(dataset), encoding="utf-8")
    recipe = folder / "run.yaml"
    recipe.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return recipe


class Attempt:
    """One start of a run.

    Args:
        recipe: The run's recipe; the run is in the folder beside it.
        resume: Whether it goes on.
        patience: Seconds without anything new after which it counts as hung.

    Attributes:
        longest: Seconds that the longest time without anything new has taken.
    """

    def __init__(self, recipe: Path, *, resume: bool, patience: float) -> None:
        self._run, self._patience = recipe.parent / "run", patience
        self._rows = _size(self._run / METRICS)
        self._output: TextIO = (recipe.parent / "output.txt").open("w+", encoding="utf-8")
        command = [sys.executable, "-X", "faulthandler", "-m", "posttrain.cli", "run", str(recipe)]
        self._process = subprocess.Popen(
            [*command, *(["--resume"] if resume else [])],
            stdout=self._output,
            stderr=subprocess.STDOUT,
            cwd=recipe.parent,
            start_new_session=True,
            env=os.environ | {"POSTTRAIN_CACHE": str(recipe.parent / "cache")},
        )
        self.learned, self.longest, self._since = 0, 0.0, time.monotonic()

    @property
    def output(self) -> str:
        """What it has printed."""
        return Path(self._output.name).read_text("utf-8")

    def disturb(self, kill: Kill) -> bool:
        """Kill as soon as it is time to; return False if the run has ended before."""
        while self.learned < kill.learned or not self._victims(kill.kind):
            if self._ended():
                return False
        until = time.monotonic() + kill.delay
        while time.monotonic() < until:
            if self._ended():
                return False
        if kill.kind == "driver":
            # Agents of Ray's, which hold nothing of the run, may take a minute longer.
            below = [process for kind in KINDS for process in self._victims(kind)]
            self._process.kill()
            self._process.wait()
            _, left = psutil.wait_procs(below, timeout=GONE_S)
            assert not left, f"{GONE_S:.0f} s after the driver there are still {left}"
            return True
        victims = self._victims(kill.kind)
        for victim in victims[:1] if kill.kind == "engine" else victims:
            with suppress(psutil.NoSuchProcess):
                victim.kill()
        self._progress()
        return bool(victims)

    def ask_to_end(self, kind: str, number: signal.Signals) -> list[psutil.Process]:
        """Send the driver a signal once there is a process of a kind; return all that are below it then."""
        while not self._victims(kind):
            assert not self._ended(), self.output
        below = [process for process, _ in self._commands()]
        self._process.send_signal(number)
        return below

    def finish(self) -> int:
        """Wait for its end; return its exit code."""
        while not self._ended():
            pass
        return self._process.wait()

    def close(self) -> None:
        """End whatever is left of it."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._output.close()

    def _victims(self, kind: str) -> list[psutil.Process]:
        """Return the processes of a kind."""
        if kind == "driver":
            return [psutil.Process(self._process.pid)]
        is_one = KINDS["engine" if kind == "engines" else kind]
        return [process for process, command in self._commands() if is_one(command)]

    def _commands(self) -> list[tuple[psutil.Process, list[str]]]:
        """Return the processes below the driver, with their command lines."""
        found = []
        for process in psutil.Process(self._process.pid).children(recursive=True):
            try:
                if command := process.cmdline():
                    found.append((process, command))
            except psutil.Error:  # it has just ended
                continue
        return found

    def _ended(self) -> bool:
        """Look whether the driver has ended, after a short while.

        Raises:
            AssertionError: If it hangs; the message says where.
        """
        time.sleep(0.02)
        rows = _size(self._run / METRICS)
        if rows > self._rows:
            self.learned += 1
        if rows != self._rows:
            self._rows = rows
            self._progress()
        if self._process.poll() is not None:
            self._progress()
            return True
        if time.monotonic() - self._since > self._patience:
            raise AssertionError(f"the run hangs:\n{self._where()}")
        return False

    def _progress(self) -> None:
        now = time.monotonic()
        self.longest, self._since = max(self.longest, now - self._since), now

    def _where(self) -> str:
        """Say what each process does, and where every thread of the driver is, which ends by that."""
        doing = "\n".join(
            f"{process.pid} {process.status()} {' '.join(command)[:100]}"
            for process, command in self._commands()
        )
        self._process.send_signal(signal.SIGABRT)
        self._process.wait()
        return f"{doing}\n{self.output[-8000:]}"


def _size(path: Path) -> int:
    """Return the number of whole lines of a file."""
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def learned_prompts(run: Path) -> Counter[tuple[int, str]]:
    """Count what was learned by step and prompt: metrics say which steps, rollouts which prompts.

    Raises:
        AssertionError: If a step is there twice, or its episodes are of versions too far apart.
    """
    metrics = list(read_rows(run / METRICS, MetricsRow))
    bound = json.loads((run / "resolved.json").read_text("utf-8"))["stages"][0]["rollout"]["max_staleness"]
    assert [row.step for row in metrics] == list(range(1, STEPS + 1))
    found: Counter[tuple[int, str]] = Counter()
    assert any(row.figures["grad_norm"] for row in metrics)
    for row in metrics:
        if bound:
            assert (row.figures["staleness/max"] or 0) <= bound
        episodes = list(read_rows(run / ROLLOUTS / STAGE / f"step-{row.step}.jsonl", EpisodeRow))
        versions = [episode.version for episode in episodes if episode.version is not None]
        assert len(versions) == PROMPTS * GROUP_SIZE
        assert max(versions) - min(versions) <= bound
        assert len({(episode.group, episode.episode) for episode in episodes}) == len(episodes)
        found.update((row.step, episode.sample_id) for episode in episodes)
    return found
