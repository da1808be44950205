"""`posttrain tools …`: list, write and check tools and environments.

Heavy imports happen inside the commands.
"""

import argparse
from pathlib import Path
from typing import Any

from posttrain.cli.commands import add_command, json_object
from posttrain.plugins import declared

LIST = """\
examples:
  posttrain tools list
  posttrain tools list '{mcp: charts, command: python, args: [charts.py]}'    what an MCP server offers
"""

NEW = """\
Writes NAME.py with a commented tool, or an environment, and test_NAME.py.

examples:
  posttrain tools new look_up
  posttrain tools new guess --environment
"""

CHECK = """\
Checks what training relies on. Of a tool: the model is told what it is, right calls succeed, hostile
arguments that fit its schema are refused by ToolError and nothing else, and it is in time. Of an environment:
it plays, the same turns lead to the same, it answers whatever a model writes, and its rewards are finite.
✓ passed, ✗ failed.
An MCP server is named as a task lists it; all the tools that it offers are called, so leave out by
enabled_tools those that must not be.
It also shows what the model sees. Calls are tried on a row with two drawn images.

examples:
  posttrain tools check look_up.py:look_up --arguments '{"img_idx": 0, "word": "size"}'
  posttrain tools check guess.py:Guess --columns '{"number": 7}' --say 3 --say 7
  posttrain tools check image_zoom_in --params '{"min_side": 64}'
  posttrain tools check '{mcp: charts, command: python, args: [charts.py]}'
"""


def add_verbs(verbs: Any) -> None:
    """Add the verbs of `posttrain tools` to its parser.

    Args:
        verbs: The subparsers.
    """
    listed = add_command(verbs, "list", list_command, "tools and environments that are installed", LIST)
    listed.add_argument(
        "server", nargs="?", type=mcp_server, metavar="SERVER", help="an MCP server, whose tools are listed"
    )

    new = add_command(verbs, "new", new_command, "write a tool or an environment to start from", NEW)
    new.add_argument("name", metavar="NAME", help="what it is called")
    new.add_argument("--environment", action="store_true", help="write an environment, and not a tool")
    new.add_argument("--directory", type=Path, default=Path(), metavar="DIR", help="where to (default: here)")

    check = add_command(verbs, "check", check_command, "check a tool or an environment", CHECK)
    check.add_argument(
        "reference", type=tool_reference, metavar="REF", help="a name, file.py:attribute, or an MCP server"
    )
    check.add_argument(
        "--params", type=json_object, default={}, metavar="JSON", help="its params as a JSON object"
    )
    check.add_argument(
        "--columns", type=json_object, default={}, metavar="JSON", help="columns of the row it is tried on"
    )
    check.add_argument(
        "--arguments",
        type=json_object,
        action="append",
        default=[],
        metavar="JSON",
        help="arguments of a right call; may be repeated (default: typical ones are tried)",
    )
    check.add_argument(
        "--say",
        action="append",
        default=[],
        metavar="TEXT",
        help="a turn for an environment; repeatable",
    )
    check.add_argument(
        "--deadline",
        type=float,
        metavar="S",
        help="seconds a call may take (default: 10; of an MCP server its tool_timeout_s)",
    )
    check.add_argument(
        "--base-dir", type=Path, default=Path(), metavar="DIR", help="where file references start"
    )


def mcp_server(text: str) -> dict[str, Any]:
    """Read an argument that is an MCP server as a task lists it.

    Raises:
        argparse.ArgumentTypeError: If it is none, with everything that is wrong.
    """
    import yaml
    from pydantic import ValidationError

    from posttrain.config.mcp import McpServerConfig

    try:
        return McpServerConfig.model_validate(yaml.safe_load(text)).model_dump()
    except yaml.YAMLError:
        raise argparse.ArgumentTypeError("it is no YAML such as '{mcp: NAME, command: …}'") from None
    except ValidationError as error:
        wrong = (f"{'.'.join(map(str, each['loc'])) or 'it'}: {each['msg']}" for each in error.errors())
        raise argparse.ArgumentTypeError("; ".join(wrong)) from None


def tool_reference(text: str) -> str | dict[str, Any]:
    """Read an argument that is a tool's reference, or an MCP server; see `mcp_server`."""
    return mcp_server(text) if text.lstrip().startswith("{") else text


def list_command(options: argparse.Namespace) -> int:
    """Run `posttrain tools list`."""
    from posttrain.plugins import PluginError
    from tools_env.loading import ENVIRONMENTS, TOOLS, load_game, load_tools

    if options.server is not None:
        for loaded in load_tools([options.server]):
            print(f"{loaded.spec.name:<30} {loaded.spec.description.partition(chr(10))[0]}")
        return 0
    for name in declared(TOOLS):
        try:
            for loaded in load_tools([name]):
                summary = loaded.spec.description.partition("\n")[0]
                print(f"{name:<20} {loaded.spec.name:<20} {summary}")
        except PluginError as error:  # it needs params
            print(f"{name:<20} {'':<20} with params: {error}")
    for name in declared(ENVIRONMENTS):
        summary = (load_game(name).summary).partition("\n")[0]
        print(f"{name:<20} {'(environment)':<20} {summary}")
    return 0


def new_command(options: argparse.Namespace) -> int:
    """Run `posttrain tools new`."""
    from tools_env.kit.skeleton import write_skeleton

    written = write_skeleton(options.name, options.directory, environment=options.environment)
    print("\n".join(f"wrote {path}" for path in written))
    lines = map(str.strip, written[0].read_text(encoding="utf-8").splitlines())
    how = next(line for line in lines if line.startswith("posttrain tools check"))
    print(f"\n{written[1].name} needs pytest, which is not installed with this package: pip install pytest")
    print(f"now: {how}")
    return 0


def check_command(options: argparse.Namespace) -> int:
    """Run `posttrain tools check`."""
    from tools_env.kit.check import check_plugin

    own = 10.0 if isinstance(options.reference, str) else options.reference["tool_timeout_s"]
    report = check_plugin(
        options.reference,
        options.params,
        base_dir=options.base_dir,
        columns=options.columns,
        right=options.arguments,
        turns=options.say,
        deadline_s=own if options.deadline is None else options.deadline,
    )
    for finding in report.findings:
        print(f"{finding.mark} {finding.check}{finding.note and f': {finding.note}'}")
        for line in finding.failures[:5]:
            print(f"    {line}")
        if finding.failures[5:]:
            print(f"    and {len(finding.failures) - 5} more")
    print("\nwhat the model sees:")
    for line in report.seen:
        print(f"  {line}")
    return 0 if report.passed else 1
