"""The command line. Heavy imports happen inside the commands, so that `--help` and `validate` are quick."""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from posttrain import __version__
from posttrain.cli.checkpoint import add_checkpoint_commands
from posttrain.cli.commands import add_command, load_checked
from posttrain.cli.compare import add_compare
from posttrain.cli.data import add_verbs as add_data_verbs
from posttrain.cli.explain import EXAMPLES, add_arguments, explain_command
from posttrain.cli.rewards import add_verbs
from posttrain.cli.submit import add_submit
from posttrain.cli.tools import add_verbs as add_tool_verbs
from posttrain.config import ConfigError, Document, build_run, read_run, recipe_names
from posttrain.config.arithmetic import stages_together
from posttrain.config.memory import Cards, card_memory

OWN_PACKAGES = ("posttrain", "rewards", "tools_env")

ABOUT = """\
Post-train Qwen-VL models: supervised fine-tuning, RL and tool RL on images, from one YAML file.

first steps:
  posttrain doctor                     can this machine run it?
  posttrain run quickstart             make a tiny Qwen3-VL and teach it to zoom, on a CPU
  posttrain view runs/quickstart       see what happened
"""

RUN = """\
examples:
  posttrain run quickstart                                  a recipe that ships with the package
  posttrain run quickstart seed=1 name=second-seed          with other values
  posttrain run quickstart stages.rl.max_steps=20           a stage is addressed by its name
  posttrain run my_run.yaml --resume                        go on where it was interrupted
  posttrain run my_run.yaml --dry-run                       check everything, start nothing

a file of your own may change a recipe (my_run.yaml):
  base: quickstart
  name: greedy
  stages:
    rl: {learning_rate: 5e-5, prompts_per_step: 32}
"""

VALIDATE = """\
Checks keys, types and batch arithmetic, that data and plugins are there, that every row can be read and shown
to the model, and that gold answers earn full marks. Starts nothing and needs no weights.

examples:
  posttrain validate my_run.yaml
  posttrain validate qwen3-vl-8b stages.rl.algorithm.group_size=8
  posttrain validate qwen3-vl-8b --gpus 8 --gpu-memory 80     does it fit other GPUs than are here?
"""

DOCTOR = """\
example:
  posttrain doctor --fix               fix what can be fixed, then look again
"""

VIEW = """\
example:
  posttrain view runs/quickstart       write report.html and print where it is
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit code: 0, 1 for a finding or a crash, 2 for something to correct, 130 when interrupted, 143
        when ended by SIGTERM.
    """
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse ends a list of positionals at the first option; overrides may follow one all the same.
    if rest and hasattr(options, "overrides") and not any(word.startswith("-") for word in rest):
        options.overrides += rest
    elif rest:
        parser.error(f"unknown arguments: {' '.join(rest)} (see `posttrain {options.command or ''} --help`)")
    if options.command is None:
        parser.print_help()
        return 0
    try:
        return options.action(options)
    except BrokenPipeError:  # whoever read the output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("\ninterrupted; `posttrain run … --resume` goes on", file=sys.stderr)
        return 130
    except Exception as error:
        if options.debug or not is_own(error):
            traceback.print_exc()
            return 1
        count = (
            f"{len(error.problems)} problems\n"
            if isinstance(error, ConfigError) and error.problems[1:]
            else ""
        )
        print(f"posttrain: {count}{getattr(error, 'cause', None) or error}", file=sys.stderr)
        return getattr(error, "exit_code", 2)


def is_own(error: BaseException) -> bool:
    """Tell whether an error was raised on purpose, with a message for people, here or in a Ray worker."""
    return any(cls.__module__.partition(".")[0] in OWN_PACKAGES for cls in type(error).__mro__)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser with every command."""
    parser = argparse.ArgumentParser(
        prog="posttrain",
        description=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"posttrain {__version__}")
    parser.set_defaults(command=None, debug=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    run = add_command(commands, "run", run_command, "run a recipe or a YAML file", RUN)
    _add_source(run)
    run.add_argument("--resume", action="store_true", help="go on from the last valid checkpoint")
    run.add_argument(
        "--allow-changes", action="store_true", help="with --resume: although settings or data changed"
    )
    run.add_argument("--dry-run", action="store_true", help="check everything, start nothing")

    add_submit(commands)
    _add_validate(
        add_command(commands, "validate", validate_command, "check a run without starting it", VALIDATE)
    )

    add_arguments(
        add_command(commands, "explain", explain_command, "tell what the keys of a YAML file mean", EXAMPLES)
    )

    doctor = add_command(commands, "doctor", doctor_command, "explain this environment", DOCTOR)
    doctor.add_argument("--fix", action="store_true", help="fix what can be fixed")

    view = add_command(commands, "view", view_command, "write a run's report", VIEW)
    view.add_argument("run", type=Path, metavar="RUN", help="a run's directory")

    add_compare(commands)
    add_checkpoint_commands(commands)

    data = commands.add_parser("data", help="look at datasets, and rewrite them")
    data.set_defaults(command="data", action=lambda _: data.print_help() or 0)
    add_data_verbs(data.add_subparsers(title="commands", metavar="COMMAND"))

    rewards = commands.add_parser("rewards", help="list, write, check, try and serve rewards")
    rewards.set_defaults(command="rewards", action=lambda _: rewards.print_help() or 0)
    add_verbs(rewards.add_subparsers(title="commands", metavar="COMMAND"))

    tools = commands.add_parser("tools", help="list, write and check tools and environments")
    tools.set_defaults(command="tools", action=lambda _: tools.print_help() or 0)
    add_tool_verbs(tools.add_subparsers(title="commands", metavar="COMMAND"))
    return parser


def _add_source(parser: argparse.ArgumentParser) -> None:
    recipes = ", ".join(recipe_names())
    parser.add_argument("source", metavar="RECIPE|FILE", help=f"a YAML file, or one of {recipes}")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="values that replace the file's")


def _add_validate(parser: argparse.ArgumentParser) -> None:
    _add_source(parser)
    parser.add_argument(
        "--gpus", type=int, metavar="N", help="GPUs that it is to fit on (default: this machine's)"
    )
    parser.add_argument(
        "--gpu-memory", type=float, metavar="GB", help="memory of each, as it is sold: 24, 80, 141"
    )


def run_command(options: argparse.Namespace) -> int:
    """Run a recipe: `posttrain run`."""
    config = load_checked(read_run(options.source, options.overrides), about_to_run=not options.dry_run)
    if options.dry_run:
        print(f"{config.name}: nothing was started (--dry-run)")
        return 0
    from posttrain.training import pipeline

    pipeline.run(config, resume=options.resume, allow_changes=options.allow_changes)
    return 0


def validate_command(options: argparse.Namespace) -> int:
    """Check a recipe and print what it comes to: `posttrain validate`."""
    document = read_run(options.source, options.overrides)
    config = load_checked(document, about_to_run=False, cards=_named_cards(options, document))
    together = stages_together(config)
    counted = (f"{name} × {len(each)}" if each[1:] else name for name, each in together.items())
    stages = " → ".join(counted) or "evaluation only"
    print(f"{config.name}: valid ({stages})")
    return 0


def _named_cards(options: argparse.Namespace, document: Document) -> Cards | None:
    """Return the GPUs that the options of `validate` describe; None if they describe none."""
    if options.gpus is None and options.gpu_memory is None:
        return None
    asked = build_run(document).cluster.num_gpus or 1
    memory = None if options.gpu_memory is None else card_memory(options.gpu_memory)
    return Cards(asked if options.gpus is None else options.gpus, memory)


def doctor_command(options: argparse.Namespace) -> int:
    """Look at this environment: `posttrain doctor`."""
    from posttrain import doctor

    return doctor.run(fix=options.fix)


def view_command(options: argparse.Namespace) -> int:
    """Write a run's report: `posttrain view`."""
    from posttrain.viewer import write_report

    print(write_report(options.run))
    return 0
