"""What every command of the command line looks like, and the check that those about runs begin with."""

import argparse
from collections.abc import Callable
from typing import Any

from posttrain.config import ConfigError, Document, RunConfig, build_run
from posttrain.config.arithmetic import batch_arithmetic
from posttrain.config.memory import Cards
from posttrain.files.strict_json import JsonObject, parse_json


def add_command(
    commands: Any, name: str, action: Callable[[argparse.Namespace], int], summary: str, examples: str
) -> argparse.ArgumentParser:
    """Add a command whose help ends with examples.

    Args:
        commands: The subparsers.
        name: What is typed.
        action: What it does; returns the exit code.
        summary: One line, in lower case.
        examples: What stands at the end of its help.

    Returns:
        Its parser, for arguments of its own.
    """
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(command=name, action=action)
    return parser


def json_object(text: str) -> JsonObject:
    """Read an argument that is a JSON object.

    Raises:
        argparse.ArgumentTypeError: If it is none.
    """
    try:
        value = parse_json(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError('not a JSON object such as {"limit": 5}')
    return value


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
