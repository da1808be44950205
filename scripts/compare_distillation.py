"""On-policy against off-policy distillation over seeds: how far each student is from its teacher in the end.

    python scripts/compare_distillation.py  # seeds 0, 1 and 2, every arm; half an hour a seed on 2 cores
    python scripts/compare_distillation.py --seeds 0 --arms off-policy on-policy
    python scripts/compare_distillation.py --start runs/quickstart/sft/checkpoint-500 \
        --teacher runs/quickstart/cold_start/checkpoint-50  # the quickstart's models, which are there already

Arms:
    off-policy     the student learns to say what the teacher answered
    on-policy      it learns the teacher's distribution on its own answers, as many as those; the teacher is
                   in the learners and tells it over the whole vocabulary
    engines        the same with the teacher in engines, which tell its 64 likeliest tokens
    lora           the same by adapters
    text           the same on prompts without images: the language model alone is trained

Each arm and seed is a run made of the recipe `on-policy-distillation`. All students then play prompts of one
dataset, with images and the tool; the divergence from the teacher over all tokens is measured on their own
tokens by a step that changes nothing; the accuracy is that of the quickstart. A run that was ended is gone on
with when the script is started again, so it can be run in pieces:
`timeout -s TERM -k 60 30m python scripts/compare_distillation.py`. The table shows what has been measured so
far; intervals are Student's t over seeds, at 95 %.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from posttrain.config.document import read_document
from posttrain.run.metric_names import DIVERGENCE_TEACHER, EPISODE_TOKENS, KL_TEACHER

RECIPE = "on-policy-distillation"
LIVE, TASK = "on_policy", "with_tool"
#: Stages of the recipe that make what students start from, the last but one, and their teacher.
MODELS = ("tiny_model", "sft", "cold_start")
#: Stages of an arm's run.
LEARNED, MEASURED = "learned", "measured"
#: The arms, and the stage of the recipe that each is made of.
ARMS = {"off-policy": "off_policy"} | dict.fromkeys(("on-policy", "engines", "lora", "text"), LIVE)
#: What an arm changes of the on-policy stage, key by key.
CHANGES: dict[str, dict[str, Any]] = {
    "engines": {"teacher": {"place": "engines", "engine": {"kv_cache_gb": 0.5}}, "loss": {"top_k": 64}},
    "lora": {"lora": {"rank": 32}, "optimizer": "adamw"},
    "text": {
        "text_only": True,
        "tasks": [{"data": "markers_lookup_train", "name": "lookup", "max_new_tokens": 64}],
    },
}
ACCURACY = "accuracy"
#: Figures of the table.
FIGURES = (DIVERGENCE_TEACHER, KL_TEACHER, ACCURACY, EPISODE_TOKENS)
#: Student's t, two-sided at 95 %, by degrees of freedom.
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return a mean and the ends of its 95 % interval, which are infinite for a single value."""
    mean = fmean(values)
    if len(values) < 2:
        return mean, -math.inf, math.inf
    half = T_95[min(len(values) - 1, max(T_95))] * stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def recipe() -> dict[str, Any]:
    """Read the recipe."""
    path = Path(str(files("posttrain").joinpath("recipes", f"{RECIPE}.yaml")))
    return read_document(path).data


def run_of_models() -> dict[str, Any]:
    """Make the settings of a run that trains what students start from, and their teacher."""
    settings = recipe()
    settings["stages"] = [stage for stage in settings["stages"] if _name(stage) in MODELS]
    settings["evaluation"]["stages"] = [*MODELS[1:]]
    return settings


def run_of(arm: str, start: Path, teacher: Path) -> dict[str, Any]:
    """Make the settings of an arm's run.

    Args:
        arm: The arm.
        start: The model that its student starts from.
        teacher: The model that teaches it.
    """
    settings = recipe()
    settings["model"]["name_or_path"] = str(start.resolve())
    stages = {_name(stage): stage for stage in settings["stages"]}
    learning, measuring = stages[ARMS.get(arm, LIVE)], stages[f"measured_{LIVE}"]
    for key, value in CHANGES.get(arm, {}).items():
        learning[key] = {**learning[key], **value} if isinstance(learning.get(key), dict) else value
    for stage in (learning, measuring):
        checkpoint = {"checkpoint": str(teacher.resolve())}
        stage["teacher"] = {key: v for key, v in stage["teacher"].items() if key != "stage"} | checkpoint
    learning |= {"name": LEARNED, "start_from": "base"}
    measuring |= {"name": MEASURED, "start_from": LEARNED}
    settings["stages"] = [learning, measuring]
    settings["evaluation"]["stages"] = [LEARNED]
    return settings


def _name(stage: dict[str, Any]) -> str:
    return stage.get("name", stage["stage"])


def go(name: str, settings: dict[str, Any], folder: Path, seed: int, overrides: Sequence[str]) -> Path:
    """Run some settings, from where they were ended if they were; return the run's directory.

    Raises:
        CalledProcessError: If the run does not end well.
    """
    run, file = folder / name, folder / f"{name}.yaml"
    if run_is_over(run, settings):
        return run
    folder.mkdir(parents=True, exist_ok=True)
    settings |= {"name": name, "seed": seed, "output_dir": str(folder.resolve())}
    file.write_text(json.dumps(settings, indent=1), encoding="utf-8")
    command = [sys.executable, "-m", "posttrain.cli", "run", str(file), *overrides]
    subprocess.run([*command, *["--resume"] * run.is_dir()], check=True)
    return run


def run_is_over(run: Path, settings: dict[str, Any]) -> bool:
    """Tell whether all stages have ended, and all that is to be measured has been."""
    told = {row["stage"] for row in rows_of(run, "evaluation.jsonl")}
    ended = all((run / _name(stage) / "stage.json").is_file() for stage in settings["stages"])
    return ended and told.issuperset(settings["evaluation"]["stages"])


def final(run: Path, stage: str) -> Path:
    """Return the final checkpoint of a stage that has ended."""
    folder = run / stage
    return folder / json.loads((folder / "stage.json").read_text("utf-8"))["final"]


def rows_of(run: Path, file: str) -> list[dict[str, Any]]:
    """Read a run's log; nothing if there is none yet."""
    path = run / file
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []


def measured(run: Path) -> dict[str, float]:
    """Read what is known of an arm so far: divergences, accuracy, and how long its answers were."""
    found: dict[str, float] = {}
    rows = rows_of(run, "metrics.jsonl")
    for row in rows:
        if row["stage"] == MEASURED and DIVERGENCE_TEACHER in row:
            found |= {name: row[name] for name in (DIVERGENCE_TEACHER, KL_TEACHER)}
    for row in rows_of(run, "evaluation.jsonl"):
        if row["stage"] == LEARNED and row["task"] == TASK:
            found[ACCURACY] = row["accuracy"]
    lengths = [row[EPISODE_TOKENS] for row in rows if row["stage"] == LEARNED and EPISODE_TOKENS in row]
    return found | ({EPISODE_TOKENS: fmean(lengths)} if lengths else {})


def table(arms: Sequence[str], runs: Mapping[str, Sequence[Path]]) -> str:
    """Write what has been measured of each arm over its runs."""
    lines = [f"{'student':<11} {'figure':<20} {'mean':>8}   95 % interval over seeds"]
    for arm in arms:
        known = [measured(run) for run in runs[arm]]
        for figure in FIGURES:
            values = [row[figure] for row in known if figure in row]
            if values:
                mean, low, high = interval(values)
                ends = f"[{low:.4f}, {high:.4f}]" if len(values) > 1 else "(one seed)"
                lines.append(f"{arm:<11} {figure:<20} {mean:8.4f}   {ends}")
    return "\n".join(lines)


def main() -> int:
    """Run what has not been run, and print the comparison."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--arms", nargs="+", choices=[*ARMS], default=[*ARMS])
    options.add_argument("--start", type=Path, help="what students start from, such as the quickstart's sft")
    options.add_argument("--teacher", type=Path, help="their teacher, such as the quickstart's cold_start")
    options.add_argument("--output-dir", type=Path, default=Path("runs"))
    options.add_argument("--table", action="store_true", help="print what is measured, and run nothing")
    options.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes of every arm's run")
    chosen = options.parse_args()
    if (chosen.start is None) != (chosen.teacher is None):
        options.error("--start and --teacher are given together, or trained together")
    folder = chosen.output_dir / "compare-distillation"
    runs = {arm: [folder / f"{arm}-{seed}" for seed in chosen.seeds] for arm in chosen.arms}
    for seed in chosen.seeds if not chosen.table else ():
        start, teacher = chosen.start, chosen.teacher
        if start is None:
            models = go(f"models-{seed}", run_of_models(), folder, seed, ())
            start, teacher = final(models, MODELS[1]), final(models, MODELS[2])
        for arm in chosen.arms:
            go(f"{arm}-{seed}", run_of(arm, start, teacher), folder, seed, chosen.overrides)
            print(table(chosen.arms, runs), flush=True)
    if chosen.table:
        print(table(chosen.arms, runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
