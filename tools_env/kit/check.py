"""Does a tool or an environment keep to what training relies on?"""

import contextlib
import json
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from PIL import Image, ImageDraw

from posttrain.failures import WorldError
from posttrain.files.strict_json import JsonObject
from posttrain.media.images import save_image
from posttrain.types import Block, EnvironmentReply, Message, Sample, ToolSpec
from tools_env.environment import ToolEnvironment
from tools_env.games import LoadedGame
from tools_env.kit.hostile import TURNS, hostile_calls, typical_calls
from tools_env.loading import is_environment, load_game, load_tools
from tools_env.sdk import ToolReference
from tools_env.sessions import CALL_S, AnyTool

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_UNDECLARED = re.compile(r"Error: .+ failed \((\w+)\)")
#: Most calls of one tool, and turns of one dialogue with an environment.
MAX_CALLS, MAX_TURNS = 600, 8
#: Seconds after which no more hostile calls of a tool are tried: each opens a session, which may take long.
HOSTILE_S = 60.0
#: Share of its deadline that a call should leave unused.
SPARE = 0.5


@dataclass
class Finding:
    """What one check found.

    Attributes:
        check: What was asked.
        failures: A line for each thing that is wrong; none means that it passed.
        note: Said of a check that passed.
    """

    check: str
    failures: list[str] = field(default_factory=list)
    note: str = ""

    @property
    def mark(self) -> str:
        """What stands before it."""
        return "✗" if self.failures else "✓"


@dataclass
class Report:
    """Every finding, and what the model sees.

    Attributes:
        findings: In the order in which they were made.
        seen: What the model is told of the tools, and shown of a call or of the first turns.
    """

    findings: list[Finding] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not any(finding.failures for finding in self.findings)


@dataclass(frozen=True)
class Tried:
    """One call, and what came of it.

    Attributes:
        call: As a line.
        reply: The environment's; None where the world failed.
        failure: How it failed.
        seconds: How long it took.
    """

    call: str
    reply: EnvironmentReply | None
    failure: str
    seconds: float

    @property
    def refused(self) -> bool:
        """Whether the model was told that the call failed."""
        return self.reply is None or not all(call.ok for call in self.reply.calls)

    @property
    def undeclared(self) -> str:
        """The exception that the tool did not declare, if there was one."""
        error = self.reply.calls[0].error if self.reply is not None and self.reply.calls else ""
        found = _UNDECLARED.fullmatch(error)
        return found[1] if found else ""


def check_plugin(
    reference: ToolReference,
    params: Mapping[str, Any],
    *,
    base_dir: Path = Path(),
    columns: Mapping[str, Any] | None = None,
    right: Sequence[Mapping[str, Any]] = (),
    turns: Sequence[str] = (),
    deadline_s: float = CALL_S,
) -> Report:
    """Check a tool, or an environment.

    Args:
        reference: Of either; or an MCP server, `{"mcp": …}`.
        params: Its params.
        base_dir: Folder against which file references are resolved.
        columns: Columns of the row that it is tried on.
        right: Arguments of calls that are right; typical ones are tried if there are none.
        turns: Turns that an environment is told first, such as right moves.
        deadline_s: Seconds that a call may take; it passes if it takes half of them at most.

    Raises:
        PluginError: If the reference leads to neither.
    """
    if isinstance(reference, str):
        named, is_game = {"name": reference, "params": dict(params)}, is_environment(reference, base_dir)
    else:
        named, is_game = reference, False
    with tempfile.TemporaryDirectory() as folder:
        game = load_game(named, base_dir) if is_game else None
        tools: Sequence[AnyTool] = load_tools([named], base_dir) if game is None else game.tools
        report = Report()
        for tool in tools:
            _check_schema(report, tool.spec)
        bench = _Bench(Path(folder), columns or {}, deadline_s, () if game is not None else tools, game)
        for tool in tools:
            _check_calls(report, bench, tool.spec, right)
        if game is not None:
            _check_turns(report, bench, turns)
        return report


@dataclass
class _Bench:
    """Where calls are tried: a row with two drawn images, and a folder for what comes back."""

    folder: Path
    columns: Mapping[str, Any]
    deadline_s: float
    tools: Sequence[AnyTool]
    game: LoadedGame | None

    def begin(self) -> tuple[ToolEnvironment, tuple[Message, ...]]:
        """Begin an episode."""
        environment = ToolEnvironment(self.tools, 2 * MAX_TURNS, self.folder / "made", self.game)
        refs = [save_image(image, self.folder / "shown") for image in _drawn()]
        blocks = (*(Block("image", image=ref) for ref in refs), Block("text", text="What is there?"))
        sample = Sample("row", (Message("user", blocks),), columns=dict(self.columns))
        return environment, environment.start(sample)

    def call(self, spec: ToolSpec, arguments: Mapping[str, Any]) -> Tried:
        """Try one call, in an episode of its own."""
        call = json.dumps({"name": spec.name, "arguments": arguments})
        return self.turn(lambda environment: environment.step(f"<tool_call>{call}</tool_call>"), call)

    def turn(self, ask: Callable[[ToolEnvironment], EnvironmentReply], line: str) -> Tried:
        """Try one thing in an episode of its own."""
        environment, _ = self.begin()
        begun = time.monotonic()
        try:
            reply = ask(environment)
            took = time.monotonic() - begun
            environment.close()
            return Tried(line[:200], reply, "", took)
        except WorldError as error:
            took = time.monotonic() - begun
            return Tried(line[:200], None, str(error), took)
        finally:
            with contextlib.suppress(WorldError):  # told already
                environment.close()


def _check_schema(report: Report, spec: ToolSpec) -> None:
    """Check what the model is told."""
    wrong: list[str] = []
    if not _NAME.fullmatch(spec.name):
        wrong.append(f"the name {spec.name!r} is not letters, digits, _ and -")
    if not spec.description.strip():
        wrong.append("it does not say what it does")
    try:
        Draft202012Validator.check_schema(spec.parameters)
    except SchemaError as error:
        wrong.append(f"the schema is none: {error.message[:200]}")
    if spec.parameters.get("type") != "object":
        wrong.append('the schema must be of {"type": "object"}')
    properties = spec.parameters.get("properties")
    bare = [
        name
        for name, each in (properties if isinstance(properties, dict) else {}).items()
        if not (isinstance(each, dict) and each.get("description"))
    ]
    note = f'say more of {", ".join(bare)}: Annotated[…, "what it is"]' if bare else ""
    report.findings.append(Finding(f"{spec.name}: the model is told what it is", wrong, note))
    report.seen.append(json.dumps(spec.as_openai(), ensure_ascii=False))


def _check_calls(report: Report, bench: _Bench, spec: ToolSpec, right: Sequence[Mapping[str, Any]]) -> None:
    """Try right calls, then hostile ones."""
    schema: JsonObject = spec.parameters
    tries = [bench.call(spec, arguments) for arguments in right]
    base: Mapping[str, Any] | None = right[0] if right else None
    for arguments in () if right else typical_calls(schema):
        tried = bench.call(spec, arguments)
        base = base if base is not None else arguments
        if not tried.refused:
            tries, base = [tried], arguments
            break
        tries = [tried]
    failures = [f"{each.call}: {_said(each)}" for each in tries if each.refused]
    what = "calls that were given succeed" if right else "a typical call succeeds"
    hint = "" if right or not failures else "give arguments that are right: --arguments '{…}'"
    report.findings.append(Finding(f"{spec.name}: {what}", [*failures, *([hint] if hint else [])]))
    report.seen += [f"{each.call}\n{_said(each)}" for each in tries[:3]]
    hostile: list[Tried] = []
    until = time.monotonic() + HOSTILE_S
    for number, arguments in enumerate(hostile_calls(schema, base or {})):
        if number == MAX_CALLS or time.monotonic() > until:
            break
        hostile.append(bench.call(spec, arguments))
    undeclared = [f"{each.call}: {each.undeclared}" for each in hostile if each.undeclared]
    note = f"{len(hostile)} calls"
    report.findings.append(
        Finding(f"{spec.name}: refuses what it cannot serve by ToolError", undeclared, note)
    )
    failed = [f"{each.call}: {each.failure}" for each in hostile if each.reply is None]
    report.findings.append(Finding(f"{spec.name}: no arguments make it fail as the world does", failed, note))
    slowest = max([*tries, *hostile], key=lambda each: each.seconds)
    slow = [f"{slowest.call}: {slowest.seconds:.1f} s"] if slowest.seconds > SPARE * bench.deadline_s else []
    report.findings.append(Finding(f"{spec.name}: is in time", slow, f"slowest {slowest.seconds:.2f} s"))


def _check_turns(report: Report, bench: _Bench, turns: Sequence[str]) -> None:
    """Play an environment: what it shows, the same twice, and whatever a model may write."""
    game = bench.game
    assert game is not None
    played = [_play(bench, turns or TURNS[:MAX_TURNS]) for _ in range(2)]
    report.findings.append(Finding(f"{game.name}: plays, and has rewards at the end", played[0].failures[:1]))
    differ = [] if played[0].said == played[1].said else ["two dialogues of the same turns differ"]
    report.findings.append(Finding(f"{game.name}: the same turns lead to the same", differ))
    report.seen += played[0].said
    hostile = [_play(bench, [turn]) for turn in TURNS]
    hostile += [_play(bench, TURNS[start : start + MAX_TURNS]) for start in range(0, len(TURNS), MAX_TURNS)]
    broken = [line for each in hostile for line in each.failures]
    report.findings.append(
        Finding(f"{game.name}: answers whatever a model writes", broken, f"{len(hostile)} dialogues")
    )
    slowest = max(each.seconds for each in [*played, *hostile])
    slow = [f"a turn took {slowest:.1f} s"] if slowest > SPARE * bench.deadline_s else []
    report.findings.append(Finding(f"{game.name}: is in time", slow, f"slowest turn {slowest:.2f} s"))


@dataclass
class _Played:
    """A dialogue with an environment.

    Attributes:
        said: What the model sees, and the rewards, as lines.
        failures: How it broke.
        seconds: The slowest turn.
    """

    said: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0


def _play(bench: _Bench, turns: Sequence[str]) -> _Played:
    """Play turns until the end."""
    played, turn = _Played(), "(start)"
    try:
        environment, prompt = bench.begin()
        played.said.append("← " + _shown(prompt[-1]))
        for turn in turns:
            begun = time.monotonic()
            reply = environment.step(turn)
            played.seconds = max(played.seconds, time.monotonic() - begun)
            played.said.append(f"→ {turn[:80]!r}")
            played.said.append("← " + _seen(reply))
            if reply.done:
                break
        turn = "(rewards)"
        played.said.append(f"rewards: {json.dumps(environment.close())}")
    except WorldError as error:
        played.failures.append(f"{turn[:80]!r}: {error}")
    return played


def _said(tried: Tried) -> str:
    if tried.reply is None:
        return f"a failure of the world: {tried.failure}"
    return _seen(tried.reply)


def _seen(reply: EnvironmentReply) -> str:
    return " ".join(map(_shown, reply.messages)) or "(the end)"


def _shown(message: Message) -> str:
    blocks = (
        f"[image {Path(block.image.path).name[:8]}]" if block.image is not None else block.text[:300]
        for block in message.content
    )
    return " ".join(blocks)


def _drawn() -> list[Image.Image]:
    """Draw two images of unlike sizes."""
    wide, tall = Image.new("RGB", (320, 200), "lightblue"), Image.new("RGB", (120, 260), "beige")
    ImageDraw.Draw(wide).ellipse((40, 40, 120, 120), fill="red")
    ImageDraw.Draw(tall).rectangle((20, 150, 90, 230), fill="green")
    return [wide, tall]
