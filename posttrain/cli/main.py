"""The command line. Heavy imports happen inside the commands, so that `--help` and `validate` are quick."""

import argparse
import datetime
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain import __version__
from posttrain.cli.commands import add_command
from posttrain.cli.data import add_verbs as add_data_verbs
from posttrain.cli.explain import EXAMPLES, add_arguments, explain_command
from posttrain.cli.rewards import add_verbs
from posttrain.config import ConfigError, Document, RunConfig, build_run, read_run, recipe_names
from posttrain.config.arithmetic import batch_arithmetic
from posttrain.config.memory import Cards, card_memory
from posttrain.config.model import read_model_config
from posttrain.gpus import visible_gpus

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
Checks keys, types and batch arithmetic, that data and plugins are there, and that gold answers earn full
marks. Starts nothing and needs no weights.

examples:
  posttrain validate my_run.yaml
  posttrain validate qwen3-vl-8b stages.rl.algorithm.group_size=8
  posttrain validate qwen3-vl-8b --gpus 8 --gpu-memory 80     does it fit other GPUs than are here?
"""

DOCTOR = """\
example:
  posttrain doctor --fix               fix what can be fixed, then look again
"""

EVAL = """\
examples:
  posttrain eval runs/quickstart/rl/checkpoint-40 --data markers_test --tools image_zoom_in --max-turns 3
  posttrain eval Qwen/Qwen3-VL-8B-Instruct --data my_questions.yaml --num-gpus 1 --max-new-tokens 512
"""

VIEW = """\
example:
  posttrain view runs/quickstart       write report.html and print where it is
"""

EXPORT = """\
example:
  posttrain export runs/quickstart/rl/checkpoint-40 --output my-model
"""

CHAT = """\
examples:
  posttrain chat runs/quickstart/rl/checkpoint-40 --image scene.png
  posttrain chat Qwen/Qwen3-VL-2B-Instruct --image scene.png --prompt "Which letter is on the red marker?"
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

    _add_validate(
        add_command(commands, "validate", validate_command, "check a run without starting it", VALIDATE)
    )

    add_arguments(
        add_command(commands, "explain", explain_command, "tell what the keys of a YAML file mean", EXAMPLES)
    )

    doctor = add_command(commands, "doctor", doctor_command, "explain this environment", DOCTOR)
    doctor.add_argument("--fix", action="store_true", help="fix what can be fixed")

    _add_eval_options(add_command(commands, "eval", eval_command, "measure a checkpoint", EVAL))

    view = add_command(commands, "view", view_command, "write a run's report", VIEW)
    view.add_argument("run", type=Path, metavar="RUN", help="a run's directory")

    export = add_command(commands, "export", export_command, "merge adapters and write a model card", EXPORT)
    export.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a directory, best within a run")
    export.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the model goes")

    chat = add_command(commands, "chat", chat_command, "talk to a checkpoint", CHAT)
    chat.add_argument("checkpoint", metavar="CHECKPOINT", help="a directory, or a model of the hub")
    chat.add_argument("--image", type=Path, metavar="FILE", help="shown with the first question")
    chat.add_argument("--prompt", metavar="TEXT", help="ask this, print the answer and end")
    chat.add_argument(
        "--max-new-tokens", type=int, default=512, metavar="N", help="of an answer (default: 512)"
    )
    chat.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy, the default")

    data = commands.add_parser("data", help="look at datasets, and rewrite them")
    data.set_defaults(command="data", action=lambda _: data.print_help() or 0)
    add_data_verbs(data.add_subparsers(title="commands", metavar="COMMAND"))

    rewards = commands.add_parser("rewards", help="list, write, check, try and serve rewards")
    rewards.set_defaults(command="rewards", action=lambda _: rewards.print_help() or 0)
    add_verbs(rewards.add_subparsers(title="commands", metavar="COMMAND"))
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


def _add_eval_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a directory, or a model of the hub")
    parser.add_argument(
        "--data", required=True, metavar="NAME", help="a dataset of datasets_cfg/, or a YAML file"
    )
    parser.add_argument("--tools", nargs="+", default=[], metavar="TOOL", help="tools offered to the model")
    parser.add_argument("--max-turns", type=int, metavar="N", help="most turns (default: 1, with tools 4)")
    parser.add_argument(
        "--rewards", nargs="+", default=["answer_accuracy"], metavar="REWARD", help="what is measured"
    )
    parser.add_argument("--num-samples", type=int, default=256, metavar="N", help="prompts (default: 256)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 is greedy, the default"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=256, metavar="N", help="of a turn (default: 256)"
    )
    parser.add_argument(
        "--max-length", type=int, default=4096, metavar="N", help="of an episode (default: 4096)"
    )
    parser.add_argument(
        "--num-gpus",
        type=int,
        metavar="N",
        help="engines, each on a GPU; 0 is the CPU (default: all there are)",
    )
    parser.add_argument(
        "--output-dir", default="runs", metavar="DIR", help="where results go (default: runs)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the sampling")


def load_checked(document: Document, about_to_run: bool, cards: Cards | None = None) -> RunConfig:
    """Build a run's config, look for what can be known to fail, and print what it comes to.

    Args:
        document: The run's data.
        about_to_run: Data that are not on this machine are then a problem, not a note.
        cards: The GPUs that it is to fit on; those of this machine where None.

    Raises:
        ConfigError: With every problem found.
    """
    from posttrain.first_party import PLUGINS
    from posttrain.preflight.examination import examine, examine_data

    config = build_run(document)
    findings = examine(config, document, PLUGINS, cards)
    problems = findings.problems + (findings.missing_here if about_to_run else [])
    if not problems and not about_to_run:  # a run looks at the rows itself
        whole = examine_data(config, document, PLUGINS)
        problems = whole.problems
        findings.notes += whole.notes
    if problems:
        raise ConfigError(problems)
    rows = [*batch_arithmetic(config), *findings.memory]
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        print(f"  {name:<{width}}  {text}")
    for note in [*findings.notes, *(problem.reason for problem in findings.missing_here)]:
        print(f"  note: {note}")
    return config


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
    stages = " → ".join(stage.name for stage in config.stages) or "evaluation only"
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


def eval_command(options: argparse.Namespace) -> int:
    """Measure a checkpoint by a run without stages: `posttrain eval`."""
    config = load_checked(Document(evaluation_run(options), "command line"), about_to_run=True)
    from posttrain.training import pipeline

    pipeline.run(config)
    return 0


def evaluation_run(options: argparse.Namespace) -> dict[str, Any]:
    """Make the settings of a run that only measures a checkpoint."""
    checkpoint = Path(options.checkpoint).expanduser()
    stored = read_model_config(checkpoint)
    dtype = stored.get("dtype", stored.get("torch_dtype"))
    gpus = len(visible_gpus()) if options.num_gpus is None else options.num_gpus
    actors = {"actors": gpus} if gpus else {}
    return {
        "name": f"eval-{datetime.datetime.now():%Y%m%d-%H%M%S}",
        "output_dir": options.output_dir,
        "base_dir": str(Path.cwd()),
        "seed": options.seed,
        "model": {
            "name_or_path": str(checkpoint.absolute()) if checkpoint.is_dir() else options.checkpoint,
            "dtype": "float32" if dtype == "float32" else "bfloat16",
        },
        "cluster": {"num_gpus": gpus},
        "stages": [],
        "evaluation": {
            "tasks": [
                {
                    "data": options.data,
                    "tools": options.tools,
                    "max_turns": options.max_turns or (4 if options.tools else 1),
                    "rewards": options.rewards,
                    "num_samples": options.num_samples,
                    "temperature": options.temperature,
                }
            ],
            "rollout": {"max_new_tokens": options.max_new_tokens, "max_length": options.max_length} | actors,
        },
    }


def view_command(options: argparse.Namespace) -> int:
    """Write a run's report: `posttrain view`."""
    from posttrain.viewer import write_report

    print(write_report(options.run))
    return 0


def export_command(options: argparse.Namespace) -> int:
    """Merge adapters and write a model card: `posttrain export`."""
    from posttrain.models.export import export

    export(options.checkpoint, options.output)
    print(options.output)
    return 0


def chat_command(options: argparse.Namespace) -> int:
    """Ask a checkpoint once, or question after question: `posttrain chat`."""
    from posttrain.cli.chat import HELP, Chat, converse

    def write(text: str) -> None:
        print(text, end="", flush=True)

    chat = Chat(options.checkpoint, write, options.max_new_tokens, options.temperature)
    if options.prompt is not None:
        chat.ask(options.prompt, options.image)
        return 0
    if sys.stdin.isatty():
        print(HELP)
    converse(chat, sys.stdin, write, options.image)
    return 0
