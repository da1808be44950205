"""On-policy against off-policy distillation over seeds: how far each student is from its teacher in the end.

    python scripts/compare_distillation.py  # seeds 0, 1 and 2 of the recipe; hours on two cores
    python scripts/compare_distillation.py --seeds 0 stages.on_policy.max_steps=10

Each seed is a run of the recipe `on-policy-distillation`, resumed where it was interrupted. Both students
play prompts of one dataset, and the divergence from the teacher is measured on their own tokens.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from posttrain.run.metric_names import DIVERGENCE_TEACHER, KL_TEACHER

RECIPE = "on-policy-distillation"
STAGES = {"off-policy": "measured_off_policy", "on-policy": "measured_on_policy"}
#: Student's t, two-sided at 95 %, by degrees of freedom.
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return a mean and the ends of its 95 % interval, which are infinite for a single value."""
    mean = fmean(values)
    if len(values) < 2:
        return mean, -math.inf, math.inf
    half = T_95[min(len(values) - 1, max(T_95))] * stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def measured(run: Path, stage: str) -> dict[str, float]:
    """Read what a stage that measures has logged last."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [row for row in rows if row["stage"] == stage and DIVERGENCE_TEACHER in row][-1]


def main() -> int:
    """Run the seeds that have not been run, and print the comparison."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--output-dir", type=Path, default=Path("runs"))
    options.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes of the recipe")
    chosen = options.parse_args()
    runs = [chosen.output_dir / f"{RECIPE}-{seed}" for seed in chosen.seeds]
    for seed, run in zip(chosen.seeds, runs, strict=True):
        settings = [f"seed={seed}", f"name={run.name}", f"output_dir={chosen.output_dir}", *chosen.overrides]
        resumed = ["--resume"] if run.is_dir() else []
        subprocess.run(["posttrain", "run", RECIPE, *settings, *resumed], check=True)
    print(f"{'student':<12} {'figure':<20} {'mean':>8}   95 % interval over {len(runs)} seeds")
    for name, stage in STAGES.items():
        found = [measured(run, stage) for run in runs]
        for figure in (DIVERGENCE_TEACHER, KL_TEACHER):
            mean, low, high = interval([row[figure] for row in found])
            print(f"{name:<12} {figure:<20} {mean:8.4f}   [{low:.4f}, {high:.4f}]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
