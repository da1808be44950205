"""One action space for desktop, web and phone: what a model is told of it, and what it asks for.

Qwen's models use a computer, and the browser on it, by the tool `computer_use`, and a phone by `mobile_use`.
Names, actions and words are those of the published cookbooks (QwenLM/Qwen3-VL,
cookbooks/utils/agent_function_call.py), but for `answer` on the phone, which is ours. What both ask for is an
`Act` of one vocabulary, which is also that of the reward `gui_action`.

A published screen has the resolution in which the model writes coordinates: 1000x1000 for Qwen2-VL and
Qwen3-VL, the pixels of the resized image for Qwen2.5-VL. A screen whose sides are multiples of 28 and which
is within the model's limits is not resized, so `pixel_original` says the same.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from posttrain.files.strict_json import Json, JsonObject
from posttrain.types import Box, Frame, ToolSpec
from tools_env.sdk import Arguments, ToolError

Device = Literal["desktop", "phone"]
Pointing = Literal["click", "double_click", "triple_click", "right_click", "middle_click", "long_press"]
Kind = Literal[Pointing, "hover", "drag", "scroll", "type", "key", "open", "wait", "answer", "terminate"]
Point: TypeAlias = tuple[float, float]
Size: TypeAlias = tuple[int, int]

#: Longest text that is typed or answered.
MAX_TEXT = 1000
#: Fewest units of the screen that a finger must move to scroll.
_SWIPE = 5.0

#: Each action of a computer: what the model is told, and the kind it is of.
_COMPUTER: dict[str, tuple[str, Kind]] = {
    "key": (
        "Performs key down presses on the arguments passed in order, then performs key releases in reverse "
        "order.",
        "key",
    ),
    "type": ("Type a string of text on the keyboard.", "type"),
    "mouse_move": ("Move the cursor to a specified (x, y) pixel coordinate on the screen.", "hover"),
    "left_click": (
        "Click the left mouse button at a specified (x, y) pixel coordinate on the screen.",
        "click",
    ),
    "left_click_drag": (
        "Click and drag the cursor to a specified (x, y) pixel coordinate on the screen.",
        "drag",
    ),
    "right_click": (
        "Click the right mouse button at a specified (x, y) pixel coordinate on the screen.",
        "right_click",
    ),
    "middle_click": (
        "Click the middle mouse button at a specified (x, y) pixel coordinate on the screen.",
        "middle_click",
    ),
    "double_click": (
        "Double-click the left mouse button at a specified (x, y) pixel coordinate on the screen.",
        "double_click",
    ),
    "triple_click": (
        "Triple-click the left mouse button at a specified (x, y) pixel coordinate on the screen (simulated "
        "as double-click since it's the closest action).",
        "triple_click",
    ),
    "scroll": ("Performs a scroll of the mouse scroll wheel.", "scroll"),
    "hscroll": ("Performs a horizontal scroll (mapped to regular scroll).", "scroll"),
    "wait": ("Wait specified seconds for the change to happen.", "wait"),
    "terminate": ("Terminate the current task and report its completion status.", "terminate"),
    "answer": ("Answer a question.", "answer"),
}
_PHONE: dict[str, tuple[str, Kind]] = {
    "key": (
        "Perform a key event on the mobile device.\n    - This supports adb's `keyevent` syntax.\n"
        '    - Examples: "volume_up", "volume_down", "power", "camera", "clear".',
        "key",
    ),
    "click": ("Click the point on the screen with coordinate (x, y).", "click"),
    "long_press": (
        "Press the point on the screen with coordinate (x, y) for specified seconds.",
        "long_press",
    ),
    "swipe": (
        "Swipe from the starting point with coordinate (x, y) to the end point with coordinates2 (x2, y2).",
        "scroll",
    ),
    "type": ("Input the specified text into the activated input box.", "type"),
    "system_button": ("Press the system button.", "key"),
    "open": ("Open an app on the device.", "open"),
    "wait": ("Wait specified seconds for the change to happen.", "wait"),
    "answer": ("Answer a question.", "answer"),
    "terminate": ("Terminate the current task and report its completion status.", "terminate"),
}
_ACTIONS: dict[Device, dict[str, tuple[str, Kind]]] = {"desktop": _COMPUTER, "phone": _PHONE}
_NAMES: dict[Device, str] = {"desktop": "computer_use", "phone": "mobile_use"}
_ABOUT: dict[Device, str] = {
    "desktop": """\
Use a mouse and keyboard to interact with a computer, and take screenshots.
* This is an interface to a desktop GUI. You do not have access to a terminal or applications menu. You must \
click on desktop icons to start applications.
* The screen's resolution is {width}x{height}.
* Make sure to click any buttons, links, icons, etc with the cursor tip in the center of the element. Don't \
click boxes on their edges.""",
    "phone": """\
Use a touchscreen to interact with a mobile device, and take screenshots.
* This is an interface to a mobile device with touchscreen. You can perform actions like clicking, typing, \
swiping, etc.
* The screen's resolution is {width}x{height}.
* Make sure to click any buttons, links, icons, etc with the cursor tip in the center of the element. Don't \
click boxes on their edges unless asked.""",
}
_XY = (
    "(x, y): The x (pixels from the left edge) and y (pixels from the top edge) coordinates to move the "
    "mouse to."
)
_STATUS: JsonObject = {
    "description": "The status of the task. Required only by `action=terminate`.",
    "type": "string",
    "enum": ["success", "failure"],
}
_PARAMETERS: dict[Device, JsonObject] = {
    "desktop": {
        "keys": {"description": "Required only by `action=key`.", "type": "array"},
        "text": {"description": "Required only by `action=type` and `action=answer`.", "type": "string"},
        "coordinate": {"description": _XY, "type": "array"},
        "pixels": {
            "description": "The amount of scrolling to perform. Positive values scroll up, negative values "
            "scroll down. Required only by `action=scroll` and `action=hscroll`.",
            "type": "number",
        },
        "time": {"description": "The seconds to wait. Required only by `action=wait`.", "type": "number"},
        "status": _STATUS,
    },
    "phone": {
        "coordinate": {
            "description": f"{_XY} Required only by `action=click`, `action=long_press`, and `action=swipe`.",
            "type": "array",
        },
        "coordinate2": {"description": f"{_XY} Required only by `action=swipe`.", "type": "array"},
        "text": {
            "description": "Required only by `action=key`, `action=type`, `action=open`, and "
            "`action=answer`.",
            "type": "string",
        },
        "time": {
            "description": "The seconds to wait. Required only by `action=long_press` and `action=wait`.",
            "type": "number",
        },
        "button": {
            "description": "Back means returning to the previous interface, Home means returning to the "
            "desktop, Menu means opening the application background menu, and Enter means pressing the "
            "enter. Required only by `action=system_button`",
            "enum": ["Back", "Home", "Menu", "Enter"],
            "type": "string",
        },
        "status": _STATUS,
    },
}


@dataclass(frozen=True)
class Act:
    """What is done on a screen, whatever the device.

    Attributes:
        kind: What it is.
        point: Where, in pixels of the screen.
        text: What is typed, answered or opened.
        keys: Which keys, in small letters.
        down: How far the content moves up, in pixels; of a scroll.
        succeeded: Of an end, whether it was reported as a success.

    Example:
        Act("double_click", point=(40.0, 60.0))
    """

    kind: Kind
    point: Point | None = None
    text: str = ""
    keys: tuple[str, ...] = ()
    down: float = 0.0
    succeeded: bool = False


def device_tool(device: Device, size: Size, frame: Frame = "norm_1000") -> ToolSpec:
    """Return what a model is told of a device.

    Args:
        device: Which it is.
        size: Width and height of its screen, in pixels.
        frame: In which coordinates are.

    Raises:
        ValueError: If there is no such device or frame.
    """
    if device not in _ACTIONS or frame not in ("norm_1000", "pixel_original"):
        raise ValueError(f"{device!r}, {frame!r}: there are desktop and phone, norm_1000 and pixel_original")
    width, height = (1000, 1000) if frame == "norm_1000" else size
    told = "\n".join(f"* `{name}`: {about}" for name, (about, _) in _ACTIONS[device].items())
    names: list[Json] = [*_ACTIONS[device]]
    action: JsonObject = {
        "description": f"The action to perform. The available actions are:\n{told}",
        "enum": names,
        "type": "string",
    }
    parameters: JsonObject = {
        "properties": {"action": action, **_PARAMETERS[device]},
        "required": ["action"],
        "type": "object",
    }
    return ToolSpec(_NAMES[device], _ABOUT[device].format(width=width, height=height), parameters)


def act_of(arguments: Arguments, device: Device, size: Size, frame: Frame = "norm_1000") -> Act:
    """Return what a call asks for.

    Raises:
        ToolError: If it lacks what its action needs, or points beside the screen.
    """
    name = arguments["action"]
    kind = _ACTIONS[device][name][1]
    point = _point(arguments, "coordinate", size, frame)
    if point is None and ("click" in kind or kind in ("long_press", "hover", "drag") or name == "swipe"):
        raise ToolError(f"action {name} needs coordinate, [x, y]")
    if kind == "scroll":
        return Act(kind, point, down=_scrolled(arguments, name, size, frame, point))
    if kind in ("type", "answer", "open"):
        return Act(kind, text=_needed(arguments, "text", name)[:MAX_TEXT])
    if kind == "key":
        key = {"system_button": "button"}.get(name, "keys" if device == "desktop" else "text")
        keys = _needed(arguments, key, name)
        return Act(
            kind, keys=tuple(str(each)[:40].lower() for each in (keys if isinstance(keys, list) else [keys]))
        )
    if kind == "terminate":
        return Act(kind, succeeded=_needed(arguments, "status", name) == "success")
    return Act(kind, point)


def called(device: Device, action: str, **arguments: Any) -> dict[str, Any]:
    """Return a call's name and arguments, as messages hold them."""
    return {"name": _NAMES[device], "arguments": {"action": action, **arguments}}


def in_frame(point: Point, size: Size, frame: Frame) -> list[int]:
    """Return a point of the screen as a model writes it."""
    there = Box(*point, *point, frame="pixel_original").to(frame, original=size)
    return [round(there.x1), round(there.y1)]


def _needed(arguments: Mapping[str, Any], key: str, action: str) -> Any:
    if not arguments.get(key):
        raise ToolError(f"action {action} needs {key}")
    return arguments[key]


def _scrolled(arguments: Arguments, name: str, size: Size, frame: Frame, point: Point | None) -> float:
    """Return how far the content moves up: by the wheel, or under a finger."""
    if name != "swipe":
        amount = arguments.get("pixels")
        if not amount or not math.isfinite(amount):
            raise ToolError(f"action {name} needs pixels, a number that is not 0")
        return 0.0 if name == "hscroll" else -float(amount)
    end = _point(arguments, "coordinate2", size, frame)
    if end is None or point is None:
        raise ToolError("action swipe needs coordinate2, [x, y]")
    across, down = end[0] - point[0], end[1] - point[1]
    return -down if abs(down) > max(abs(across), _SWIPE) else 0.0


def _point(arguments: Arguments, key: str, size: Size, frame: Frame) -> Point | None:
    value = arguments.get(key)
    if value is None:
        return None
    numbers = [each for each in value if isinstance(each, int | float) and not isinstance(each, bool)]
    if len(value) != 2 or len(numbers) != 2 or not all(map(math.isfinite, numbers)):
        raise ToolError(f"{key} must be [x, y], two numbers")
    box = Box(numbers[0], numbers[1], numbers[0], numbers[1], frame).to("pixel_original", original=size)
    if not (0 <= box.x1 <= size[0] and 0 <= box.y1 <= size[1]):
        width, height = (1000, 1000) if frame == "norm_1000" else size
        raise ToolError(f"{key} {numbers} is beside the screen, which is {width}x{height}")
    return box.x1, box.y1
