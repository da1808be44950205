"""A tiny desktop, or phone: programs to open, a note to save, a setting to change, files to count."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from posttrain.types import Frame, ImageRef, Sample
from tools_env.devices import Act, Device, Point, act_of, called, device_tool, in_frame
from tools_env.games import Environment, Shown
from tools_env.hermes import parse_calls
from tools_env.play.screen import ROW, ROWS, SIZE, State, Widget, draw, widgets
from tools_env.play.table import View
from tools_env.sdk import Arguments, ToolError, ToolResult

APPS = ("Notes", "Settings", "Files")
SWITCHES = ("Wi-Fi", "Sound", "Dark")
WORDS = ("milk", "call Ann", "42", "rent", "Tuesday", "abc", "hello", "blue key", "buy 7", "OK")
FILES = ("plan", "photo", "song", "list", "map", "letter", "budget", "notes", "draft", "menu")
#: What is typed beyond this is lost.
_MAX_TEXT = 60


@dataclass(frozen=True)
class Task:
    """What is to be done.

    Attributes:
        kind: `note` (a text is to be saved), `switch` (a setting is to be changed) or `count` (of files).
        said: What the model is told.
        goal: The text, the setting's name, or the number.
    """

    kind: Literal["note", "switch", "count"]
    said: str
    goal: str

    @property
    def app(self) -> str:
        """The program that it is done in."""
        return {"note": "Notes", "switch": "Settings", "count": "Files"}[self.kind]


@dataclass(frozen=True)
class Move:
    """A right next action.

    Attributes:
        why: What a good player says before it.
        action: Its name.
        arguments: Its other arguments.
        widget: What it points at, if it points.
    """

    why: str
    action: str
    arguments: dict[str, Any]
    widget: Widget | None = None


class Desktop(Environment):
    """Do a task on a small screen by clicks and keys.

    Args:
        view: How the screen is shown.
        device: `desktop` (`computer_use`, a double click opens) or `phone` (`mobile_use`, a tap opens).
        frame: In which coordinates are: `norm_1000` (Qwen2-VL, Qwen3-VL) or `pixel_original` (Qwen2.5-VL).
    """

    #: What a row's message says; the task and the screen follow.
    rules = "You use a small computer."

    def __init__(self, view: View = "image", device: Device = "desktop", frame: Frame = "norm_1000") -> None:
        if view not in ("image", "text", "both"):
            raise ValueError(f"view {view!r} is none of image, text, both")
        self.view: View = view
        self.device: Device = device
        self.frame: Frame = frame
        self.specs = [device_tool(device, SIZE, frame)]

    def start(self, sample: Sample) -> Shown:
        """Set the desktop up: the row's column `seed` decides all that chance does."""
        seed = sample.columns.get("seed", sample.id)
        self.deal(random.Random(f"{type(self).__name__}/{seed}"))
        result = self.shown()
        return [self.task.said, *result.images, *([result.text] if result.text else [])]

    def deal(self, rng: random.Random) -> None:
        """Draw the task, and where things are."""
        switches = {name: rng.random() < 0.5 for name in SWITCHES}
        corner = (rng.randrange(90, 121), rng.randrange(10, 61))
        self.state = State(
            rng.sample(APPS, len(APPS)), corner, switches, rng.sample(FILES, rng.randint(2, 9))
        )
        kind = rng.choice(("note", "switch", "count"))
        self.wanted = dict(switches)
        if kind == "note":
            goal = rng.choice(WORDS)
            self.task = Task(kind, f'Save a note that says "{goal}".', goal)
        elif kind == "switch":
            goal = rng.choice(SWITCHES)
            self.wanted[goal] = not switches[goal]
            self.task = Task(kind, f"Turn {goal} {'off' if switches[goal] else 'on'}.", goal)
        else:
            said = "How many files are there? Answer with the number."
            self.task = Task(kind, said, str(len(self.state.files)))
        self.answered: str | None = None
        self.reported: bool | None = None
        self.seen = 0

    def step(self, said: str) -> Shown | None:
        """Say how to act to a turn without a call; calls of a turn come to `call`."""
        result = self.shown(f"Act by calling {self.specs[0].name}.")
        return [result.text, *result.images]

    def call(self, name: str, arguments: Arguments, images: list[ImageRef]) -> Any:
        """Do what a call asks for; None at the end."""
        act = act_of(arguments, self.device, SIZE, self.frame)
        if act.kind in ("terminate", "answer"):
            self.reported = act.succeeded if act.kind == "terminate" else True
            self.answered = act.text if act.kind == "answer" else None
            return None
        self._do(act)
        if self.state.opened == "Files":
            self.seen = max(self.seen, self.state.row + ROWS)
        return self.shown()

    def rewards(self) -> Mapping[str, float]:
        """Tell whether the task is done, how much of it, and whether the end was reported as it is."""
        solved = self.is_solved()
        right = solved if self.task.kind == "count" else self.reported is solved
        return {
            "solved": float(solved),
            "progress": 1.0 if solved else self._progress(),
            "reported": float(self.reported is not None and right),
        }

    def is_solved(self) -> bool:
        """Tell whether the task is done, and nothing else was."""
        if self.task.kind == "count":
            return self.answered is not None and self.answered.strip().rstrip(".") == self.task.goal
        wanted = self.task.goal if self.task.kind == "note" else None
        return self.state.saved == wanted and self.state.switches == self.wanted

    def shown(self, note: str = "") -> ToolResult:
        """Show the screen, and a note."""
        said = " ".join(filter(None, [note, self.words() if self.view != "image" else ""]))
        return ToolResult(said, [draw(self.state)] if self.view != "text" else [])

    def words(self) -> str:
        """Say what is on the screen, and where."""
        state = self.state
        said = [f"{each.name} {self._place(each)}{' on' * each.on}" for each in widgets(state)]
        if state.opened == "Notes":
            said.append(f'text "{state.text}"{" saved" * (state.text == state.saved)}')
        if state.opened == "Files":
            listed = state.files[state.row : state.row + ROWS]
            rest = len(state.files) - state.row - len(listed)
            said.append(f"files {' '.join(listed)}{' and more below' if rest else ''}")
        return f"{state.opened or 'Desktop'}: {'; '.join(said)}."

    def moves(self) -> tuple[list[str], list[str]]:
        """Return the turn of a good player, and turns that are allowed."""
        good = self.next_move()
        clicks = [Move("", self._click, {}, each) for each in widgets(self.state)]
        return [self.turn(good)], [self.turn(each) for each in [*clicks, Move("", "wait", {"time": 1})]]

    def turn(self, move: Move) -> str:
        """Write a move as a turn of the model."""
        arguments = dict(move.arguments)
        if move.widget is not None:
            arguments = {"coordinate": in_frame(move.widget.centre, SIZE, self.frame), **arguments}
        call = json.dumps(called(self.device, move.action, **arguments))
        return f"{move.why}\n<tool_call>\n{call}\n</tool_call>".lstrip()

    def next_move(self) -> Move:
        """Return what a good player does next."""
        state, task = self.state, self.task
        at = {each.name: each for each in widgets(state)}
        if state.asks:
            is_right = task.kind == "note" and state.text == task.goal
            return self._clicked("Yes" if is_right else "No", at)
        if self.is_solved() and task.kind != "count":
            return Move("It is done.", "terminate", {"status": "success"})
        if state.opened != task.app:
            opening = "double_click" if self.device == "desktop" else "click"
            return Move(f"I open {task.app}.", opening, {}, at[f"icon {task.app}"])
        if task.kind == "count":
            return self._counting()
        if task.kind == "switch" or state.switches != self.wanted:
            wrong = [name for name, on in state.switches.items() if on != self.wanted[name]]
            name = f"switch {wrong[0]}" if wrong else ""
            return self._clicked(name, at) if name in at else self._clicked("close", at)
        if state.text == task.goal:
            return self._clicked("Save", at)
        if not state.focused:
            return self._clicked("field", at)
        if state.text and not state.marked:
            if self.device == "desktop":
                return Move("I replace it.", "key", {"keys": ["ctrl", "a"]})
            return Move("I take it away.", "key", {"text": "clear"})
        return Move("I type the text.", "type", {"text": task.goal})

    def _counting(self) -> Move:
        if self.seen >= len(self.state.files):
            return Move(f"There are {self.task.goal}.", "answer", {"text": self.task.goal})
        if self.device == "desktop":
            return Move("I scroll down.", "scroll", {"pixels": -ROW * ROWS})
        start, end = (self._at(self.state.corner[0] + 100, y) for y in (150, 150 - ROW * ROWS))
        return Move("I swipe up.", "swipe", {"coordinate": start, "coordinate2": end})

    def _clicked(self, name: str, at: Mapping[str, Widget]) -> Move:
        return Move(f"I click {name.removeprefix('switch ')}.", self._click, {}, at[name])

    @property
    def _click(self) -> str:
        return "left_click" if self.device == "desktop" else "click"

    def _at(self, x: int, y: int) -> list[int]:
        return in_frame((x, y), SIZE, self.frame)

    def _place(self, widget: Widget) -> str:
        return ",".join(map(str, in_frame(widget.centre, SIZE, self.frame)))

    def _progress(self) -> float:
        """Return how much of the task is done: from opening the program to the last step before its end."""
        state, task = self.state, self.task
        done = [state.opened == task.app]
        if task.kind == "note":
            done += [state.focused or bool(state.text), state.text == task.goal]
        elif task.kind == "count":
            done += [self.seen >= len(state.files)]
        return sum(done) / (len(done) + 1)

    def _do(self, act: Act) -> None:
        """Change the state; what does nothing on this screen leaves it as it is."""
        state = self.state
        hit = self._hit(act.point) if act.point is not None else ""
        if act.kind in ("click", "double_click", "triple_click"):
            self._press(hit, act.kind)
        elif act.kind == "open" and not state.asks:
            self._open(next((app for app in APPS if app.casefold() == act.text.strip().casefold()), ""))
        elif act.kind == "scroll" and state.opened == "Files":
            rows = round(act.down / ROW) or (act.down > 0) - (act.down < 0)
            state.row = min(max(0, state.row + rows), max(0, len(state.files) - ROWS))
        elif act.kind == "type" and state.focused and not state.asks:
            state.text = (("" if state.marked else state.text) + " ".join(act.text.split("\n")))[:_MAX_TEXT]
            state.marked = False
        elif act.kind == "key":
            self._keys(act.keys)

    def _hit(self, point: Point) -> str:
        """Return the name of what is at a point."""
        return next((each.name for each in reversed(widgets(self.state)) if each.holds(point)), "")

    def _press(self, name: str, kind: str) -> None:
        state = self.state
        state.focused, state.marked = name == "field", name == "field" and kind == "triple_click"
        app = name.removeprefix("icon ")
        if name.startswith("icon "):
            state.selected = app
            if kind == "double_click" or self.device == "phone":
                self._open(app)
        elif name.startswith("switch "):
            setting = name.removeprefix("switch ")
            state.switches[setting] = not state.switches[setting]
        elif name in ("Yes", "No"):
            self._answer_dialog(name == "Yes")
        elif name == "Save" and state.text:
            state.asks = True
        elif name == "close":
            self._open("")

    def _answer_dialog(self, yes: bool) -> None:
        self.state.saved = self.state.text if yes else self.state.saved
        self.state.asks = False

    def _open(self, app: str) -> None:
        """Open a program, or close the window; a text that was not saved is lost."""
        state = self.state
        if app != state.opened:
            state.text, state.row = "", 0
            state.focused = state.marked = False
        state.opened = app

    def _keys(self, keys: tuple[str, ...]) -> None:
        state = self.state
        if state.asks:
            if keys in (("enter",), ("return",), ("esc",), ("escape",), ("back",)):
                self._answer_dialog(keys in (("enter",), ("return",)))
        elif keys in (("ctrl", "s"), ("control", "s")) and state.opened == "Notes" and state.text:
            state.asks = True
        elif keys in (("back",), ("home",)):
            self._open("")
        elif state.focused and keys in (("ctrl", "a"), ("control", "a")):
            state.marked = True
        elif state.focused and keys == ("clear",):
            state.text = ""
        elif state.focused and keys in (("backspace",), ("delete",)):
            state.text, state.marked = ("" if state.marked else state.text[:-1]), False


def played_turn(desktop: Desktop, said: str) -> ToolResult | None:
    """Do what the one call of a turn asks for, as the environment of an episode does.

    Raises:
        ToolError: If it cannot be done.
    """
    (call,) = parse_calls(said)
    if call.error or call.name != desktop.specs[0].name:
        raise ToolError(call.error or f"there is no tool {call.name[:80]}")
    return desktop.call(call.name, call.arguments, [])
