"""Does RL learn as well with tokens that are a few versions old, and with half of its prompts made slow?

    python scripts/learn_ahead.py runs/quickstart/sft/checkpoint-500          about half an hour on 2 cores
    python scripts/learn_ahead.py CHECKPOINT --seeds 0 --max-steps 5          to try it

Runs the quickstart's rl stage from its SFT checkpoint, once for each seed and each max_staleness. Half of
the prompts have a zoom that takes a second. Shown for each run: accuracy on held-out scenes with its interval,
the share of the episodes learned from that are of slow prompts, the mean and largest age of tokens, seconds a
step. Then, over the seeds: the mean accuracy of each max_staleness, with the standard error of the mean.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from posttrain.config import load_run

SLOW_ZOOM = '''
import time

from tools_env.zoom import ImageZoomIn


class SlowZoom(ImageZoomIn):
    """The zoom, which takes a second."""

    def __call__(self, arguments, images):
        time.sleep(1)
        return super().__call__(arguments, images)
'''


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        accuracy, low, high: On held-out scenes, with the 95 % interval.
        slow: Share of the episodes learned from that are of slow prompts.
        age, oldest: Mean and largest age of tokens, in versions.
        seconds: Of a step, in the median.
    """

    accuracy: float
    low: float
    high: float
    slow: float
    age: float
    oldest: float
    seconds: float


def recipe(checkpoint: Path, seed: int, staleness: int, steps: int) -> dict[str, Any]:
    """Return the quickstart's rl stage alone, with half of its prompts slow."""
    quickstart = load_run("quickstart")
    stage = quickstart.stages[-1].model_dump(mode="json", exclude_unset=True)
    [task] = stage["tasks"]
    slow = {"name": "slow", "tools": ["slow_zoom.py:SlowZoom"]}
    stage["tasks"] = [task | {"name": "fast", "ratio": 0.5}, task | slow | {"ratio": 0.5}]
    stage |= {"start_from": None, "max_steps": steps, "save_steps": steps, "num_workers": 1}
    stage["rollout"] |= {"max_staleness": staleness}
    assert quickstart.evaluation is not None
    with_tool = quickstart.evaluation.tasks[0].model_dump(mode="json", exclude_unset=True)
    return {
        "name": f"staleness-{staleness}-seed-{seed}",
        "seed": seed,
        "model": {"name_or_path": str(checkpoint.resolve()), "dtype": "float32", "freeze_vision_tower": True},
        "stages": [{"stage": "rl", **stage}],
        "evaluation": {"stages": ["rl"], "tasks": [with_tool]},
    }


def rows(path: Path) -> list[dict[str, Any]]:
    """Read lines of JSON."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def outcome(run: Path) -> Outcome:
    """Read what a run came to."""
    [measured] = rows(run / "evaluation.jsonl")
    tasks = Counter(
        row["task"] for path in (run / "rollouts" / "rl").glob("step-*.jsonl") for row in rows(path)
    )
    steps = rows(run / "metrics.jsonl")
    return Outcome(
        *(measured["accuracy"], measured["low"], measured["high"]),
        slow=tasks["slow"] / tasks.total(),
        age=statistics.fmean(row.get("staleness/mean", 0.0) for row in steps),
        oldest=max(row.get("staleness/max", 0.0) for row in steps),
        seconds=statistics.median(row["time/step"] for row in steps),
    )


def main() -> None:
    """Run all, and print what they came to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="the quickstart's SFT checkpoint")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--max-steps", type=int, default=40)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/learn_ahead"))
    options = parser.parse_args()
    folder: Path = options.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "slow_zoom.py").write_text(SLOW_ZOOM, encoding="utf-8")
    found: dict[int, list[Outcome]] = {staleness: [] for staleness in options.staleness}
    print("max_staleness  seed  accuracy                slow   age mean  max  s a step")
    for seed in options.seeds:
        for staleness in options.staleness:
            settings = recipe(options.checkpoint, seed, staleness, options.max_steps)
            path = folder / f"{settings['name']}.yaml"
            path.write_text(yaml.safe_dump(settings), encoding="utf-8")
            command = [sys.executable, "-m", "posttrain.cli", "run", str(path), f"output_dir={folder}"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            each = outcome(folder / settings["name"])
            found[staleness].append(each)
            print(
                f"{staleness:13}  {seed:4}  {each.accuracy:.3f} [{each.low:.3f}, {each.high:.3f}]"
                f"  {each.slow:.3f}  {each.age:8.2f}  {each.oldest:3.0f}  {each.seconds:8.2f}",
                flush=True,
            )
    for staleness, outcomes in found.items():
        values = [each.accuracy for each in outcomes]
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
        mean = statistics.fmean(values)
        print(f"max_staleness {staleness}: {mean:.3f} ± {error:.3f} over {len(values)} seeds")


if __name__ == "__main__":
    main()
