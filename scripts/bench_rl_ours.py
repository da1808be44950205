"""An rl stage of ours as a side of `bench_rl.py`: the run that `posttrain run` starts, a step at a turn."""

import argparse
import json
import pickle
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, SupportsFloat

from bench_rl_tasks import LEARNERS, RATE, ROW, TASKS, Task
from bench_rl_turns import Turns

from posttrain.config import load_run
from posttrain.rollout.records import write_trajectories
from posttrain.run.directory import RunDir
from posttrain.run.tracking import Tracker
from posttrain.training import pipeline
from posttrain.training.on_policy import controller, runner
from posttrain.types import Trajectory


def settings(
    task: Task, folder: Path, staleness: int, one_core: bool, teacher: str | None = None
) -> dict[str, Any]:
    """Return the run's settings.

    Args:
        task: The task.
        folder: Where its model and prompts are.
        staleness: Steps by which generation may be ahead.
        one_core: Whether engine and learner have a core each; else both cores are there for each in its turn.
        teacher: Where the teacher of `folder/teacher` is, if it is what is learned from: `learners` or
            `engines`.
    """
    model: dict[str, Any] = {"name_or_path": str(folder / "model"), "dtype": "float32"}
    if task.family != "text":
        model["freeze_vision_tower"] = True
    reward = f"{Path(__file__).with_name('bench_rl_reward.py')}:{task.reward}"
    played: dict[str, Any] = {"data": "prompts.yaml", "rewards": [reward]}
    if task.with_tool:
        played |= {"tools": ["image_zoom_in"], "max_turns": 2}
    stage = {
        "stage": "rl",
        "algorithm": {"name": "sapo", "group_size": task.group, "mini_batches": 1},
        "tasks": [played],
        "prompts_per_step": task.prompts,
        "max_batch_tokens": ROW,
        "max_steps": 1000,
        "learning_rate": RATE,
        "save_steps": 10_000,
        "num_workers": 1 if one_core else LEARNERS,
        "rollout": {
            "actors": 1 if one_core else task.engines,
            "max_new_tokens": task.max_new_tokens,
            "max_length": task.max_length,
            "engine": {"kv_cache_gb": 0.5, "max_num_seqs": 128},
            **({"max_staleness": staleness} if staleness else {}),
        },
    }
    if teacher is not None:
        where: dict[str, Any] = {"checkpoint": str(folder / "teacher"), "place": teacher}
        if teacher == "engines":
            where["engine"] = {"kv_cache_gb": 0.5}
        stage |= {"stage": "on_policy_distillation", "group_size": task.group, "loss": {"beta": 0.5}}
        stage |= {"teacher": where, "algorithm": None}
    return {
        "name": "ours",
        "output_dir": str(folder / "runs"),
        "model": model,
        # Learners at work beside the engines have their cores to themselves.
        "cluster": {"num_cpus": 2 if staleness else 1} if one_core else {},
        "trackers": [],
        "stages": [stage],
    }


class Gate(Tracker):
    """The run's tracker, which after a step waits for the next turn; and keeps the newest trajectories.

    Attributes:
        turns: The turns.
        folder: Where trajectories go, for the side that repeats their work.
    """

    turns: Turns
    folder: Path
    _left = 0
    _sampled = _tokens = 0
    _newest: Sequence[Trajectory] = ()
    _steps: ClassVar[list[dict[str, float]]] = []

    def start(self, stage: str, total_steps: int) -> None:
        """Wait for the first turn."""
        Gate._left = self.turns.wait()

    @classmethod
    def write(
        cls, run: RunDir, name: str, trajectories: Sequence[Trajectory], *rest: Any, **kept: Any
    ) -> Path:
        """Keep the trajectories of a step, and write the run's records of them."""
        cls._sampled += sum(sum(each.sampled) for each in trajectories)
        cls._tokens += sum(len(each.token_ids) for each in trajectories)
        cls._newest = trajectories
        return write_trajectories(run, name, trajectories, *rest, **kept)

    def log(self, stage: str, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Note a step; after the last one of a turn, wait for the next turn."""
        super().log(stage, step, metrics)
        at = self.turns.seconds()
        Gate._steps.append({"at": at} | {name: float(value) for name, value in metrics.items()})
        Gate._left -= 1
        if not Gate._left:
            (self.folder / "trajectories.pickle").write_bytes(pickle.dumps(self._newest))
            told = {"seconds": at, "sampled": self._sampled, "tokens": self._tokens, "steps": self._steps}
            Gate._steps, Gate._sampled, Gate._tokens = [], 0, 0
            Gate._left = self.turns.wait(told)


def main() -> None:
    """Run the stage; a side is told how many steps its turn has."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=[*TASKS])
    parser.add_argument("folder", type=Path)
    parser.add_argument("address")
    parser.add_argument("--staleness", type=int, default=0)
    parser.add_argument("--one-core", action="store_true")
    parser.add_argument("--teacher", choices=["learners", "engines"])
    options = parser.parse_args()
    folder = options.folder
    Gate.turns, Gate.folder = Turns(options.address), folder
    runner.Tracker, controller.write_trajectories = Gate, Gate.write
    run = settings(TASKS[options.task], folder, options.staleness, options.one_core, options.teacher)
    recipe = folder / "run.yaml"
    recipe.write_text(json.dumps(run), encoding="utf-8")
    shutil.rmtree(folder / "runs", ignore_errors=True)
    pipeline.run(load_run(recipe))


if __name__ == "__main__":
    sys.exit(main())
