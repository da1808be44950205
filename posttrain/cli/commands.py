"""What every command of the command line looks like."""

import argparse
from collections.abc import Callable
from typing import Any


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
