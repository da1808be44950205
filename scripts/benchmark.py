"""What the benchmarks share: their options, and the comparison of figures with goals."""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: A figure's name, how it compares with its goal, and the goal.
Goals = Mapping[str, tuple[str, float]]


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with `--check` and `--json`.

    Args:
        description: The benchmark's docstring.
    """
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--check", action="store_true", help="exit with 1 where a goal is missed")
    made.add_argument("--json", type=Path, metavar="FILE", help="keep the figures there")
    return made


def report(figures: Mapping[str, Any], goals: Goals, options: argparse.Namespace) -> int:
    """Print the figures beside their goals and keep them where `--json` says.

    Returns:
        The exit code: 1 where a goal is missed and `--check` was given, else 0.
    """
    missed = []
    for name, value in figures.items():
        shown = f"{value:.3f}" if isinstance(value, float) else value
        sign, goal = goals.get(name, ("", 0.0))
        print(f"{name:<30} {shown}{f'   goal {sign} {goal:g}' if sign else ''}")
        if sign and not (value >= goal if sign == ">=" else value <= goal):
            missed.append(f"{name} is {value:.3f}, the goal is {sign} {goal:g}")
    if options.json:
        kept = {**figures, "goals": {name: goals[name] for name in figures if name in goals}}
        options.json.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    for miss in missed:
        print(f"missed: {miss}", file=sys.stderr)
    return int(bool(missed) and options.check)
