"""Is it the right action on the screen? Kind, place and arguments of one step of an agent."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from rapidfuzz.distance import Levenshtein

from posttrain.types import FAMILY_FRAMES, Box, Family, Frame, RewardInput, Score
from rewards.reading.actions import Action, action_of, answered_actions, names_action, swiped
from rewards.reading.answers import normalise
from rewards.reading.regions import in_frame, read_frame, read_gold, read_regions
from rewards.reading.short_answers import squad_tokens
from rewards.sdk import reward

TextMetric = Literal["f1", "anls", "exact"]
#: What is typed and longer is not compared.
MAX_TEXT = 10_000
_BOXES = ("box", "bbox", "boxes", "bboxes")
_WITHOUT_PLACE = ("scroll", "type", "key", "open", "wait", "terminate", "answer")


@dataclass(frozen=True)
class _Gold:
    """A right action.

    Attributes:
        action: What to do.
        boxes: Where it may be done, any of them.
        points: Where it is done, in the same frame.
    """

    action: Action
    boxes: list[Box]
    points: list[Box]


@reward("gui_action", written=lambda _: None)
def gui_action(
    x: RewardInput, family: Family, tolerance: float = 0.14, text: TextMetric = "f1"
) -> Score | None:
    """Score whether the answer takes the right action on the screen.

    Formula: max over right actions g of [kind of a = kind of g] · place · arguments. place is 1 where the
    point of a lies in a box of g, its edge included, or no farther than `tolerance` from the point of g (x in
    units of the screen's width, y of its height); 1 where g has neither. arguments is, as far as g gives
    them: the direction of a scroll, the set of keys, the status of an end, the name of an app, equal or 0;
    for a text typed or answered, F1 of its words as in `token_f1`, ANLS as in `anls`, or equality. Of a drag
    both ends must be right. An answer with no action, or with several different ones, scores 0.

    Kinds are known by their many names (`left_click`, `tap` and `click` are one), and written as Qwen's
    `computer_use` and `mobile_use` tool calls, Qwen2-VL's `*FUNCTION*: Tap *ARGS*: {"point": (3, 4)}`, JSON
    with `action` or `action_type`, UI-TARS's `click(start_box='(3,4)')` and
    `click(point='<point>3 4</point>')`, `pyautogui.click(x=3, y=4)`, or a line of OS-Atlas such as
    `CLICK <point>[[3, 4]]</point>`.
    A box stands for its centre. A swipe up is a scroll down. Where the reference is a click, a bare point or
    box is one, too, unless the answer names an action, which is then unknown or cut off. If the answer has no
    action, the episode's last tool call counts.

    Range: [0, 1]. Source: point in box as in ScreenSpot (arXiv 2401.10935); type, place and 14 % of the
    screen as in Android in the Wild (2307.10088), whose boxes of the interface are the dataset's here; F1 of
    the text as in GUI-R1 (2504.10458). For 4 %, as Qwen2.5-VL takes for AndroidControl, set `tolerance`.

    Args:
        x: `ground_truth` is `[x1, y1, x2, y2]`, a click in this box, or an action in one of the forms above,
            an object `{"action": "click", "box": [x1, y1, x2, y2]}` or `{"action": "type", "text": "…"}`, or
            a list of such objects and texts, any of which is right. An object may have a `frame`, else the
            family's holds; sizes as for `grounding`. None means that this does not apply.
        family: In whose frame the answer's coordinates are.
        tolerance: The distance from the reference's point that is still right, in [0, 1).
        text: How texts are compared: `f1`, `anls` or `exact`.

    Raises:
        ValueError: If a parameter, the ground truth or a size is not as above.
    """
    if family not in FAMILY_FRAMES:
        raise ValueError(f"family {family!r} is none of {', '.join(FAMILY_FRAMES)}")
    if not 0 <= tolerance < 1 or text not in get_args(TextMetric):
        raise ValueError(f"tolerance {tolerance!r} must be in [0, 1) and text {text!r} f1, anls or exact")
    if x.ground_truth is None:
        return None
    frame = FAMILY_FRAMES[family]
    golds = _golds(x.ground_truth, frame)
    found = _answered(x, frame, any(gold.action.kind == "click" for gold in golds))
    if len(found) != 1:
        return Score(0.0, note=f"{len(found)} actions")
    action = found[0]
    best = max((_parts(gold, action, x, frame, tolerance, text) for gold in golds), key=_product)
    return Score(
        _product(best), best, note=f"{action.kind} {action.text or action.direction or ''}"[:80].strip()
    )


def _answered(x: RewardInput, frame: Frame, clicks: bool) -> list[Action]:
    """Return the actions of an answer, of the last tool call, or, for a click, its one point or box."""
    if found := answered_actions(x.answer):
        return found
    if x.tool_calls:
        last = x.tool_calls[-1]
        action = action_of({"name": last.name, "arguments": dict(last.arguments)})
        return [action] if action else []
    regions = read_regions(x.answer, frame) if clicks and not names_action(x.answer) else []
    centres = [((r.box.x1 + r.box.x2) / 2, (r.box.y1 + r.box.y2) / 2) for r in regions if r.box]
    return (
        [Action("click", (centre,)) for centre in dict.fromkeys(centres)]
        if len(centres) == len(regions)
        else []
    )


def _golds(ground_truth: object, frame: Frame) -> list[_Gold]:
    """Read the right actions of a ground truth."""
    several = isinstance(ground_truth, list | tuple) and bool(ground_truth)
    if isinstance(ground_truth, list | tuple) and several and not isinstance(ground_truth[0], dict | str):
        return [_Gold(Action("click"), _boxes(ground_truth, frame), [])]
    items = list(ground_truth) if isinstance(ground_truth, list | tuple) else [ground_truth]
    if not items:
        raise ValueError("ground_truth is an empty list; give an action, or a box to click in")
    return [_gold(item, frame) for item in items]


def _gold(item: object, frame: Frame) -> _Gold:
    """Read one right action."""
    if isinstance(item, str):
        actions, boxes, form = answered_actions(item), [], {}
    elif isinstance(item, Mapping):
        form = dict(item)
        place = next((form.pop(key) for key in _BOXES if form.get(key) is not None), None)
        frame = read_frame(form.pop("frame", frame))
        boxes = _boxes(place, frame) if place is not None else []
        named = "action" in form or "action_type" in form or "action_name" in form or "arguments" in form
        action = action_of(form) if named or not boxes else Action("click")
        actions = [action] if action else []
    else:
        actions, boxes = [], []
    if len(actions) != 1:
        raise ValueError(
            f"ground_truth {item!r:.120} is no action; give [x1, y1, x2, y2] to click in,"
            ' {"action": "click", "box": […]}, {"action": "type", "text": "…"} or "click(x=3, y=4)"'
        )
    points = [Box(*point, *point, frame=frame) for point in actions[0].points]
    if not boxes and not points and actions[0].kind not in _WITHOUT_PLACE:
        raise ValueError(f"ground_truth {item!r:.120}: a {actions[0].kind} needs a box or a coordinate")
    return _Gold(actions[0], boxes, points)


def _boxes(value: object, frame: Frame) -> list[Box]:
    """Read the boxes in which to act."""
    gold = read_gold(value, frame)
    if not gold.boxes:
        raise ValueError(f"ground_truth: {value!r:.80} is no box [x1, y1, x2, y2] to click in")
    return gold.boxes


def _parts(
    gold: _Gold, action: Action, x: RewardInput, frame: Frame, tolerance: float, text: TextMetric
) -> dict[str, float]:
    """Compute the factors of the score for one right action."""
    if not _same_kind(gold.action, action):
        return {"type": 0.0, "place": 0.0, "arguments": 0.0}
    place = _place(gold, action, x, frame, tolerance)
    return {"type": 1.0, "place": float(place), "arguments": _arguments(gold.action, action, text)}


def _same_kind(gold: Action, action: Action) -> bool:
    """Compare kinds; a drag of the finger is a swipe, and so a scroll."""
    gestures = ("scroll", "drag")
    if gold.kind in gestures and action.kind in gestures:
        return gold.kind == action.kind or len(action.points) == 2
    return gold.kind == action.kind


def _place(gold: _Gold, action: Action, x: RewardInput, frame: Frame, tolerance: float) -> bool:
    if not gold.boxes and (not gold.points or gold.action.kind == "scroll"):
        return True
    points = [Box(*point, *point, frame=frame) for point in action.points]
    if len(points) < max(1, len(gold.points)):
        return False
    if any(_inside(points[0], box) for box in in_frame(gold.boxes, frame, x)):
        return len(gold.points) < 2 or _near(points[1:], gold.points[1:], x, tolerance)
    return bool(gold.points) and _near(points, gold.points, x, tolerance)


def _inside(point: Box, box: Box) -> bool:
    return box.x1 <= point.x1 <= box.x2 and box.y1 <= point.y1 <= box.y2


def _near(points: list[Box], targets: list[Box], x: RewardInput, tolerance: float) -> bool:
    """Check that each point is within the tolerance of its target, in parts of the screen."""
    ours, theirs = in_frame(points, "norm_1000", x), in_frame(targets, "norm_1000", x)
    apart = [math.hypot(a.x1 - b.x1, a.y1 - b.y1) / 1000 for a, b in zip(ours, theirs, strict=False)]
    return all(distance <= tolerance + 1e-9 for distance in apart)


def _arguments(gold: Action, action: Action, text: TextMetric) -> float:
    """Compare what else the right action says."""
    if gold.kind == "scroll":
        ours = action.direction or (swiped(action.points) if action.kind == "drag" else None)
        return float(gold.direction in (None, ours))
    if gold.kind in ("key", "terminate"):
        return float(gold.keys == action.keys and gold.status == action.status)
    if gold.text is None:
        return 1.0
    if gold.kind == "open":
        return float(normalise(gold.text) == normalise(action.text or ""))
    return _similarity(gold.text, action.text or "", text)


def _similarity(gold: str, answer: str, metric: TextMetric) -> float:
    """Compare two texts, in [0, 1]."""
    gold, answer = (" ".join(text[:MAX_TEXT].split()).casefold() for text in (gold, answer))
    if gold == answer or metric == "exact":
        return float(gold == answer)
    if metric == "anls":
        value = Levenshtein.normalized_similarity(gold, answer)
        return value if value > 0.5 else 0.0
    ours, theirs = Counter(squad_tokens(answer)), Counter(squad_tokens(gold))
    return 2 * (ours & theirs).total() / max(1, ours.total() + theirs.total())


def _product(parts: dict[str, float]) -> float:
    return math.prod(parts.values())
