"""Actions on a screen in what a model wrote: Qwen's tool calls, UI-TARS's and pyautogui's functions, JSON.

Nothing is evaluated: functions and their arguments are read by patterns, each of which takes linear time.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from posttrain.files.strict_json import JsonError, parse_json
from posttrain.messages import without_thinking
from rewards.reading.schemas import answer_json

#: Of a longer answer only the end is read.
MAX_LENGTH = 20_000

Direction = Literal["up", "down", "left", "right"]
Point = tuple[float, float]
Arguments = Mapping[str, object]

_SAME_KIND: dict[str, str] = {
    "click": "click left_click leftclick tap touch left_single single_click mouse_click",
    "double_click": "double_click left_double doubleclick double_tap doubletap",
    "triple_click": "triple_click tripleclick",
    "right_click": "right_click right_single rightclick context_click",
    "middle_click": "middle_click middleclick",
    "long_press": "long_press longpress long_click long_tap press_and_hold hold",
    "hover": "hover mouse_move moveto move_to move move_mouse",
    "type": "type input input_text type_text write typewrite enter_text set_text",
    "scroll": "scroll hscroll vscroll scroll_page",
    "swipe": "swipe flick",
    "drag": "drag left_click_drag dragto drag_to drag_and_drop select",
    "key": "key press hotkey keypress press_key key_press system_button press_button press_hotkey",
    "open": "open open_app launch launch_app openapp start_app",
    "wait": "wait sleep pause",
    "terminate": "terminate finished finish done complete status stop task_complete status_task_complete",
    "fail": "fail failed status_task_impossible task_impossible impossible infeasible",
    "answer": "answer call_user response respond",
}
_KINDS = {name: kind for kind, names in _SAME_KIND.items() for name in names.split()}
#: Actions that are one key each.
_BUTTONS = {
    f"{verb}{button}": button
    for button in ("back", "home", "enter", "recent", "menu")
    for verb in ("", "press_", "navigate_", "go_", "keyboard_")
}
_KEY_NAMES = {
    "return": "enter",
    "control": "ctrl",
    "escape": "esc",
    "delete": "del",
    "command": "cmd",
    "win": "meta",
}
_NAMES = ("action", "action_type", "action_name", "type")
_FIRST = (
    "coordinate",
    "start_coordinate",
    "start_box",
    "start_point",
    "point",
    "position",
    "coordinates",
    "box",
    "bbox",
)
_SECOND = ("coordinate2", "end_coordinate", "end_box", "end_point", "to")
_TEXTS = ("text", "content", "value", "input_text", "message", "app", "app_name", "package_name")
_OPPOSITE: dict[str, Direction] = {"up": "down", "down": "up", "left": "right", "right": "left"}

_TOOL_CALL = re.compile(
    r"<tool_call>\s{0,9}(\{(?:(?!</?tool_call>).){1,4000}\})\s{0,9}</tool_call>", re.DOTALL
)
#: Qwen2-VL's `*FUNCTION*: Tap *ARGS*: {"point": (348,291)}`; Qwen-Agent has ✿ for the asterisks.
_MARKED = re.compile(
    r"[*✿]FUNCTION[*✿]:[ \t]*([A-Za-z]\w{0,40})\s{0,9}[*✿]ARGS[*✿]:\s{0,9}(\{[^{}]{0,4000}\})"
)
_PAIR = re.compile(r":\s{0,9}\(([-\d.,\s]{1,60})\)")
_OBJECT = re.compile(r"\{[^{}]{0,4000}(?:\{[^{}]{0,4000}\}[^{}]{0,4000}){0,3}\}")
_CALL = re.compile(r"(?<![\w.])(?:pyautogui\.|pag\.|mobile\.|browser\.)?([A-Za-z][A-Za-z_]{1,40})\(")
_ARGUMENT = re.compile(
    r"""\s{0,9}(?:([A-Za-z_]\w{0,30})\s{0,3}=\s{0,3})?"""
    r"""('(?:[^'\\\n]|\\.){0,4000}'|"(?:[^"\\\n]|\\.){0,4000}"|\[{1,2}[^\[\]\n]{0,200}\]{1,2}|\([^()\n]{0,200}\)|[\w.+-]{1,40}"""
    r"""|<point>[^<\n]{1,60}</point>|<\|box_start\|>[^<\n]{1,60}<\|box_end\|>)"""
    r"""\s{0,9}(,|(?=\)))"""
)
#: A line of OS-Atlas: `CLICK <point>[[3, 4]]</point>`, `TYPE [red shoes]`, `SCROLL [DOWN]`, `PRESS_BACK`.
_LINE = re.compile(
    r"^(?:actions?:)?\s{0,9}(CLICK|LONG_PRESS|DOUBLE_CLICK|RIGHT_CLICK|TYPE|SCROLL|OPEN_APP|PRESS_\w{1,9}|ENTER|WAIT"
    r"|COMPLETE|DONE|FAIL|IMPOSSIBLE)[ \t]{0,3}"
    r"(?:<point>([^<\n]{1,60})</point>|\[([^\[\]\n]{0,2000})\])?[ \t]{0,9}$",
    re.MULTILINE,
)
#: The beginning of an action, known or not, whole or not.
_ATTEMPT = re.compile(
    rf"(?<![\w.])(?:(?:pyautogui|pag|mobile|browser)\.\w|(?:{'|'.join((*_KINDS, *_BUTTONS))})\()"
    r"|[\"']action(?:_type|_name)?[\"']\s{0,9}:|<tool_call>|[*✿]FUNCTION[*✿]:",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d{1,9}(?:\.\d{1,12})?(?![\w.]*\w)")


@dataclass(frozen=True)
class Action:
    """One action on a screen.

    Attributes:
        kind: Its canonical name, such as `click`; a swipe is a `scroll`, the other way round.
        points: Where it starts and ends, as far as written; the centre where a box is.
        text: What is typed, answered, or the app that is opened.
        direction: Which way the content scrolls: "down" shows what is below.
        keys: The keys or system buttons pressed, sorted.
        status: How the task ends: `success` or `failure`.
    """

    kind: str
    points: tuple[Point, ...] = ()
    text: str | None = None
    direction: Direction | None = None
    keys: tuple[str, ...] = ()
    status: str | None = None


def answered_actions(answer: str) -> list[Action]:
    """Read the different actions that an answer takes, in order.

    Tool calls count before calls between marks, these before other JSON, JSON before functions such as
    `click(start_box='(3,4)')`, and these before lines such as `CLICK <point>[[3, 4]]</point>`.
    """
    text = without_thinking(answer)[-MAX_LENGTH:]
    for reader in (_tool_calls, _marked, _objects, _functions, _lines):
        if found := list(dict.fromkeys(reader(text))):
            return found
    return []


def names_action(answer: str) -> bool:
    """Check whether an answer sets out to act, be the action unknown or not written to its end."""
    return _ATTEMPT.search(without_thinking(answer)[-MAX_LENGTH:]) is not None


def action_of(found: Mapping[str, object]) -> Action | None:
    """Read one action of an object: Qwen's `{"name": …, "arguments": …}` or `{"action": "click", …}`."""
    arguments = found.get("arguments", found.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = parse_json(arguments)
        except JsonError:
            return None
    if isinstance(arguments, dict):
        name = next((arguments[key] for key in _NAMES[:3] if key in arguments), found.get("name"))
        return _action(name, arguments)
    name = next((found[key] for key in _NAMES if key in found), None)
    return _action(name, found)


def swiped(points: Sequence[Point]) -> Direction:
    """Return which way the content scrolls when a finger goes from the first point to the second."""
    (x1, y1), (x2, y2) = points
    if abs(x2 - x1) > abs(y2 - y1):
        return "left" if x2 > x1 else "right"
    return "up" if y2 > y1 else "down"


def _tool_calls(text: str) -> Iterator[Action]:
    for call in _TOOL_CALL.findall(text):
        yield from _of_json(call)


def _marked(text: str) -> Iterator[Action]:
    """Read calls between marks, whose function is the action or a tool with an argument `action`."""
    for name, arguments in _MARKED.findall(text):
        try:
            given = parse_json(_PAIR.sub(r": [\1]", arguments) if '"(' not in arguments else arguments)
        except JsonError:
            continue
        if action := action_of({"name": name, "arguments": given}):
            yield action


def _objects(text: str) -> Iterator[Action]:
    try:
        value = answer_json(text)
    except JsonError:
        for found in _OBJECT.findall(text):
            yield from _of_json(found)
        return
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict) and (action := action_of(item)):
            yield action


def _of_json(text: str) -> Iterator[Action]:
    """Read the action of one object, written as JSON or with single quotes."""
    spellings = (text, text.replace("'", '"').replace(": None", ": null"))
    for spelling in spellings if '"' not in text else spellings[:1]:
        try:
            value = parse_json(spelling)
        except JsonError:
            continue
        if isinstance(value, dict) and (action := action_of(value)):
            yield action
            return


def _lines(text: str) -> Iterator[Action]:
    for name, point, words in _LINE.findall(text):
        if action := _action(name, {"point": point} if point else {}, [words] if words else []):
            yield action


def _functions(text: str) -> Iterator[Action]:
    """Read calls of functions with literal arguments."""
    position = 0
    while call := _CALL.search(text, position):
        position = call.end()
        arguments: dict[str, object] = {}
        plain: list[str] = []
        while found := _ARGUMENT.match(text, position):
            value = _unquoted(found[2])
            if found[1]:
                arguments[found[1].lower()] = value
            else:
                plain.append(value)
            position = found.end()
        if text[position : position + 1] == ")" and (action := _action(call[1], arguments, plain)):
            yield action


def _unquoted(text: str) -> str:
    if text[0] not in "'\"":
        return text
    return re.sub(r"\\(.)", lambda escaped: "\n" if escaped[1] == "n" else escaped[1], text[1:-1])


def _action(name: object, arguments: Arguments, plain: Sequence[str] = ()) -> Action | None:
    """Make an action of a name and its arguments, or None where the name is none of an action."""
    if not isinstance(name, str):
        return None
    name = re.sub(r"[\s-]", "_", name.strip()[:60].lower())
    if name in _BUTTONS:
        return Action("key", keys=(_BUTTONS[name],))
    kind = _KINDS.get(name)
    if kind is None:
        return None
    points = tuple(point for keys in (_FIRST, _SECOND) if (point := _point(arguments, keys)))
    if not points and kind not in ("key", "type", "scroll"):
        points = _plain_points(plain)
    if kind == "click":
        kind = {"right": "right_click", "middle": "middle_click"}.get(
            str(arguments.get("button")).lower(), kind
        )
        kind = {"2": "double_click", "3": "triple_click"}.get(str(arguments.get("clicks")), kind)
    if kind in ("scroll", "swipe"):
        return Action("scroll", points, direction=_direction(kind, points, arguments, plain))
    if kind in ("terminate", "fail"):
        return Action("terminate", status=_status(kind, name, arguments))
    if kind == "key":
        return Action("key", keys=_keys(arguments, plain))
    text = next((arguments[key] for key in _TEXTS if isinstance(arguments.get(key), str)), None)
    if kind in ("type", "answer", "open"):
        return Action(kind, text=str(text) if text is not None else (plain[0] if plain else None))
    return Action(kind, points)


def _point(arguments: Arguments, keys: Sequence[str]) -> Point | None:
    """Return the point under the first of these keys, the centre where it is a box."""
    value = next((arguments[key] for key in keys if arguments.get(key) is not None), None)
    if value is None and keys is _FIRST and "x" in arguments and "y" in arguments:
        value = [arguments["x"], arguments["y"]]
    if isinstance(value, list | tuple):
        value = " ".join(str(item) for item in value[:5])
    numbers = [float(n) for n in _NUMBER.findall(str(value)[:200])] if isinstance(value, str) else []
    if len(numbers) == 4:
        return (numbers[0] + numbers[2]) / 2, (numbers[1] + numbers[3]) / 2
    return (numbers[0], numbers[1]) if len(numbers) == 2 else None


def _plain_points(plain: Sequence[str]) -> tuple[Point, ...]:
    """Return the points of arguments without names: `click(3, 4)`, `drag((3, 4), (5, 6))`."""
    numbers = [float(n) for item in plain for n in _NUMBER.findall(item)][:4]
    return tuple((numbers[i], numbers[i + 1]) for i in range(0, len(numbers) - 1, 2))


def _direction(
    kind: str, points: Sequence[Point], arguments: Arguments, plain: Sequence[str]
) -> Direction | None:
    """Return which way the content scrolls: a finger swipes the other way."""
    given = str(arguments.get("direction", plain[0] if plain else "")).lower()
    if given in _OPPOSITE:
        same: Direction = _OPPOSITE[_OPPOSITE[given]]
        return same if kind == "scroll" else _OPPOSITE[given]
    amount = next((arguments[key] for key in ("pixels", "clicks", "amount") if key in arguments), given)
    if len(points) == 2:
        return swiped(points)
    number = _NUMBER.fullmatch(str(amount))
    if not number or float(number[0]) == 0:
        return None
    return "up" if float(number[0]) > 0 else "down"


def _keys(arguments: Arguments, plain: Sequence[str]) -> tuple[str, ...]:
    """Return the keys, by one name each, whatever their order."""
    value = next(
        (arguments[key] for key in ("keys", "key", "button", "hotkey", "text") if key in arguments),
        list(plain),
    )
    names = value if isinstance(value, list | tuple) else re.split(r"[\s+,\[\]'\"]+", str(value)[:200])
    names = [str(name).strip().lower() for name in names]
    return tuple(sorted({_KEY_NAMES.get(name, name) for name in names if name}))


def _status(kind: str, name: str, arguments: Arguments) -> str | None:
    given = str(arguments.get("status", arguments.get("goal_status", ""))).lower()
    failed = kind == "fail" or given in ("failure", "fail", "failed", "infeasible", "impossible")
    return "failure" if failed else "success"
