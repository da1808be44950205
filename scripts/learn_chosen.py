"""Does RL need fewer episodes where its prompts are chosen: by pass rates beforehand, or while it learns?

    python scripts/learn_chosen.py runs/quickstart/sft/checkpoint-500          about half an hour on 2 cores
    python scripts/learn_chosen.py CHECKPOINT --seeds 0 --steps 5 --samples 2  to try it

Runs the quickstart's rl stage from its SFT checkpoint in three ways: with all prompts (`plain`); after a
curation in which the checkpoint plays every prompt with its tools, and which keeps those that it solves
sometimes, and at most nine times in ten (`curated`); and with groups without signal replaced (`dynamic`).
Shown for each number of steps: accuracy on held-out scenes with its interval, the episodes that were learned
from, those that were played besides (for pass rates, or replaced), and the share of the groups of a step that
taught nothing. A curation is made once and its rows are learned from many times; so whether its episodes
count is for the reader to say.
"""

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from posttrain.config import load_run

WAYS = ("plain", "curated", "dynamic")


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        accuracy, low, high: On held-out scenes, with the 95 % interval.
        learned: Episodes that were learned from, those of groups without signal included.
        besides: Episodes that were played for pass rates, or whose group was replaced.
        idle: Share of the groups that were learned from without teaching anything.
        kept: Share of the prompts that the curation kept; 1 without one.
    """

    accuracy: float
    low: float
    high: float
    learned: int
    besides: int
    idle: float
    kept: float


def recipe(checkpoint: Path, way: str, seed: int, steps: int, samples: int) -> dict[str, Any]:
    """Return the quickstart's rl stage alone, with its prompts chosen in some way.

    Args:
        checkpoint: What it starts from.
        way: One of WAYS.
        seed: Of the run.
        steps: Rollout batches; the rate is constant, so that shorter runs are the beginnings of longer ones.
        samples: Episodes of each prompt that its pass rate is measured by.
    """
    quickstart = load_run("quickstart")
    stage = quickstart.stages[-1].model_dump(mode="json", exclude_unset=True)
    stage |= {"start_from": None, "max_steps": steps, "save_steps": steps, "num_workers": 1, "metric": None}
    stage |= {"lr_scheduler_type": "constant", "warmup_ratio": 0.0}
    if way == "curated":
        step = {"filter": "pass_rate", "samples": samples}
        curation = {"name": "chosen", "data": stage["tasks"][0]["data"], "seed": seed, "steps": [step]}
        stage |= {"curation": "chosen.yaml"}
    else:
        curation = None
        stage |= {"dynamic_sampling": {"max_rounds": 3} if way == "dynamic" else None}
    assert quickstart.evaluation is not None
    with_tool = quickstart.evaluation.tasks[0].model_dump(mode="json", exclude_unset=True)
    return {
        "curation": curation,
        "run": {
            "name": f"{way}-{steps}-seed-{seed}",
            "seed": seed,
            "model": {
                "name_or_path": str(checkpoint.resolve()),
                "dtype": "float32",
                "freeze_vision_tower": True,
            },
            "stages": [{"stage": "rl", **stage}],
            "evaluation": {"stages": ["rl"], "tasks": [with_tool]},
        },
    }


def rows(path: Path) -> list[dict[str, Any]]:
    """Read lines of JSON."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def outcome(run: Path, episodes: int, prompts: int, samples: int) -> Outcome:
    """Read what a run came to.

    Args:
        run: Its directory.
        episodes: Of a step.
        prompts: Of a step.
        samples: Episodes of each prompt that its pass rate was measured by.
    """
    [measured] = rows(run / "evaluation.jsonl")
    steps = rows(run / "metrics.jsonl")
    funnel = run / "rl" / "curation" / "funnel.json"
    curated = json.loads(funnel.read_text(encoding="utf-8")) if funnel.is_file() else {"read": 0, "kept": 0}
    replaced = sum(row.get("refill/episodes", 0.0) for row in steps)
    return Outcome(
        *(measured["accuracy"], measured["low"], measured["high"]),
        learned=episodes * len(steps),
        besides=round(replaced) + samples * curated["read"],
        idle=statistics.fmean(row["advantage/zero_groups"] for row in steps) / prompts,
        kept=curated["kept"] / curated["read"] if curated["read"] else 1.0,
    )


def main() -> None:
    """Run all, and print what they came to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="the quickstart's SFT checkpoint")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20, 40])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/learn_chosen"))
    options = parser.parse_args()
    folder: Path = options.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    print("seed  way      steps  accuracy                learned  besides   idle   kept")
    for seed in options.seeds:
        for way in options.ways:
            for steps in options.steps:
                written = recipe(options.checkpoint, way, seed, steps, options.samples)
                settings, stage = written["run"], written["run"]["stages"][0]
                path = folder / f"{settings['name']}.yaml"
                path.write_text(yaml.safe_dump(settings), encoding="utf-8")
                if written["curation"]:
                    (folder / "chosen.yaml").write_text(yaml.safe_dump(written["curation"]), encoding="utf-8")
                command = [sys.executable, "-m", "posttrain.cli", "run", str(path), f"output_dir={folder}"]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                prompts = stage["prompts_per_step"]
                episodes = prompts * stage["algorithm"]["group_size"]
                each = outcome(folder / settings["name"], episodes, prompts, options.samples)
                print(
                    f"{seed:4}  {way:7}  {steps:5}  {each.accuracy:.3f} [{each.low:.3f}, {each.high:.3f}]"
                    f"  {each.learned:7,}  {each.besides:7,}  {each.idle:.3f}  {each.kept:.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
