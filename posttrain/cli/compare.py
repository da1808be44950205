"""`posttrain compare`: two checkpoints on the same prompts. Heavy imports happen inside the command."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.cli.commands import add_command

COMPARE = """\
Compares what runs have recorded of their evaluations, prompt by prompt: the difference of the accuracies with
its 95 % interval, how many prompts changed each way, and p, how often chance alone would make as large a
difference. On the same prompts two models are told apart with far fewer of them than their own intervals
suggest. With one answer a prompt this is McNemar's exact test with Newcombe's interval; with several
(samples_per_prompt), signs flipped at random and a bootstrap of prompts. Other prompts are refused.

examples:
  posttrain compare runs/quickstart                           every stage with the one that it started from
  posttrain compare runs/quickstart --stage sft rl            two stages of a run
  posttrain compare runs/quickstart runs/greedy               stages and tasks of the same names in both
  posttrain compare runs/quickstart runs/greedy --stage rl --task with_tool
  posttrain compare runs/quickstart runs/greedy --stage rl dpo          the first's rl with the second's dpo
  posttrain compare runs/quickstart --stage sft rl --page flipped.html  the prompts that changed, with answers
"""


class CompareError(ValueError):
    """There is nothing to compare; the message says what there is."""


@dataclass(frozen=True)
class Pair:
    """Two evaluations on a task.

    Attributes:
        task: The task.
        first, second: Run and stage.
    """

    task: str
    first: tuple[Path, str]
    second: tuple[Path, str]


def add_compare(commands: Any) -> None:
    """Add `compare` to the command line."""
    parser = add_command(
        commands, "compare", compare_command, "compare checkpoints on the same prompts", COMPARE
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="one run's directory, or two")
    parser.add_argument(
        "--stage",
        nargs="+",
        default=[],
        metavar="STAGE",
        help="one stage of both runs, or one of each in order",
    )
    parser.add_argument(
        "--task", nargs="+", default=[], metavar="TASK", help="evaluation tasks (default: all that both have)"
    )
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the prompts that changed as a page")


def compare_command(options: argparse.Namespace) -> int:
    """Compare recorded evaluations: `posttrain compare`."""
    from posttrain.evaluation.outcomes import read_outcomes
    from posttrain.evaluation.paired import compare
    from posttrain.evaluation.table import paired_table
    from posttrain.run.record import read_record

    if len(options.runs) > 2 or len(options.stage) > 2:
        raise CompareError("one run or two can be compared, and one stage or two be named")
    records = {}
    for run in options.runs:
        try:
            records[run] = read_record(run)
        except (OSError, ValueError) as error:
            raise CompareError(f"{run} holds no run that can be read: {error}") from error
    found = pairs(options.runs, options.stage, options.task, [records[run].origins for run in options.runs])
    compared = []
    for pair in found:
        outcomes = [
            read_outcomes(run, records[run], stage, pair.task) for run, stage in (pair.first, pair.second)
        ]
        compared.append((pair, *outcomes, compare(*outcomes)))
    names = [(pair.task, label(pair.first, options.runs), label(pair.second, options.runs)) for pair in found]
    print(paired_table([(*name, each[-1]) for name, each in zip(names, compared, strict=True)]))
    if options.page is not None:
        from posttrain.viewer.flipped_page import write_flipped_page

        print(
            write_flipped_page(
                options.page, [(*n, *each[1:]) for n, each in zip(names, compared, strict=True)]
            )
        )
        return 0
    print("\n--page FILE writes the prompts that changed, with both answers")
    return 0


def label(side: tuple[Path, str], runs: Sequence[Path]) -> str:
    """Return what one side of a comparison is called: its stage, and where there are two, its run."""
    run, stage = side
    return stage if len(runs) == 1 else f"{run.resolve().name} {stage}"


def pairs(
    runs: Sequence[Path], stages: Sequence[str], tasks: Sequence[str], origins: Sequence[dict[str, str]]
) -> list[Pair]:
    """Return what is to be compared.

    Args:
        runs: One or two.
        stages: Those that were named: none, one, or one for each side.
        tasks: Those that were named; all where none is.
        origins: Of each run, the stage that each stage started from.

    Raises:
        CompareError: If there is nothing, with what was measured.
    """
    from posttrain.evaluation.outcomes import measured

    there = [measured(run) for run in runs]
    one, two = runs[0], runs[-1]
    if len(stages) == 2:
        sides = [(stages[0], stages[1])]
    elif len(runs) == 2:
        sides = [(name, name) for name in stages or there[0] if name in there[1]]
    elif len(stages) == 1:
        sides = [(origins[0].get(stages[0], ""), stages[0])]
    else:
        sides = [(origins[0].get(name, ""), name) for name in there[0]]
    found = [
        Pair(task, (one, first), (two, second))
        for first, second in sides
        for task in there[0].get(first, [])
        if task in there[-1].get(second, []) and (not tasks or task in tasks)
    ]
    if not found:
        told = "; ".join(
            f"{run}: "
            + (", ".join(f"{stage} ({', '.join(names)})" for stage, names in each.items()) or "nothing")
            for run, each in zip(runs, there, strict=True)
        )
        raise CompareError(
            f"there is nothing that both have measured and --stage, --task name. Measured are {told}"
        )
    return found
