"""Trajectories as cards: which dozen a reader learns most from, and what each one shows."""

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.messages import message_from_json
from posttrain.types import Message
from posttrain.viewer.pictures import Picture, PictureBook
from posttrain.viewer.records import Rollout, RunRecord, number
from posttrain.viewer.wording import label, shortened, visible

MAX_CARDS = 12
MAX_FIGURES = 8
MAX_MESSAGES = 24
PHASES = {"first": "first steps", "last": "last steps", "evaluation": "evaluation"}
OUTCOMES = ("right", "wrong", "trouble")
#: Full marks of the first reward count as right, as they do in the evaluation.
RIGHT = 1.0
# A model's turn: its calls and its thinking, also where a tag is never closed.
_SEGMENTS = re.compile(r"(<tool_call>.*?(?:</tool_call>|\Z))|(<think>.*?(?:</think>|\Z))", re.DOTALL)


@dataclass(frozen=True)
class ZoomBox:
    """A box to draw on a figure, in norm_1000.

    Attributes:
        x, y, width, height: Clipped to the image.
        number: Of the call within the episode, from 1.
        ok: Whether the tool took it.
    """

    x: float
    y: float
    width: float
    height: float
    number: int
    ok: bool


@dataclass
class Figure:
    """An image of the dialogue.

    Attributes:
        index: Its `img_idx`, from 0 over the dialogue.
        picture: Its pixels; None beyond the number of images that a card shows.
        call: Number of the call that returned it, from 1; None for images of the prompt.
        boxes: What the model zoomed into.
    """

    index: int
    picture: Picture | None
    call: int | None = None
    boxes: list[ZoomBox] = field(default_factory=list)


@dataclass(frozen=True)
class Piece:
    """A run of text or an image's place in a message.

    Attributes:
        kind: `text`, `call`, `think` or `image`.
        text: What it says.
        figure: The image.
    """

    kind: str
    text: str = ""
    figure: Figure | None = None


@dataclass(frozen=True)
class Turn:
    """A message, cut into pieces."""

    role: str
    pieces: list[Piece]


@dataclass(frozen=True)
class RewardLine:
    """One reward's verdict on an episode; `value` is None where it did not apply or failed."""

    name: str
    value: float | None
    weight: float | None
    parts: list[tuple[str, float]]
    note: str
    error: str


@dataclass(frozen=True)
class Card:
    """An episode, ready to be shown; `figures` are those of the prompt, the others stand in their turns."""

    phase: str
    outcome: str
    title: str
    origin: str
    turns: list[Turn]
    hidden_turns: int
    figures: list[Figure]
    hidden_figures: int
    gold: str
    answer: str
    rewards: list[RewardLine]
    total: float | None
    advantage: float | None
    failed_calls: list[str]
    facts: list[tuple[str, str]]


def build_cards(record: RunRecord) -> list[Card]:
    """Cards of the most instructive trajectories, early ones first, episodes of one prompt together."""
    book = PictureBook(record.directory)
    weights = _weights(record)
    cards: list[Card] = []
    for rollout in choose(record.rollouts):
        try:
            cards.append(_card(rollout, book, weights))
        except (AttributeError, KeyError, TypeError, ValueError):
            # Another version's row, or a damaged one: the other cards are still worth showing.
            record.unreadable["rollouts"] = record.unreadable.get("rollouts", 0) + 1
    return cards


def choose(rollouts: Sequence[Rollout], limit: int = MAX_CARDS) -> list[Rollout]:
    """Pick trajectories in turns from every phase and outcome.

    Within these, prompts come first that were answered both rightly and wrongly (side by side they show
    what the difference was), then those with the greatest advantages; no prompt twice in a place.
    """
    outcomes: dict[tuple[str, str], set[str]] = {}
    spread: dict[tuple[str, str], float] = {}
    for rollout in rollouts:
        prompt = prompt_of(rollout)
        outcomes.setdefault(prompt, set()).add(outcome_of(rollout))
        spread[prompt] = max(spread.get(prompt, 0.0), abs(number(rollout.row.get("advantage")) or 0.0))

    def rank(rollout: Rollout) -> tuple[bool, float]:
        prompt = prompt_of(rollout)
        return not {"right", "wrong"} <= outcomes[prompt], -spread[prompt]

    queues: dict[tuple[str, str], dict[tuple[str, str], Rollout]] = {
        place: {} for place in itertools.product(PHASES, OUTCOMES)
    }
    for rollout in sorted(rollouts, key=rank):
        queues[rollout.phase, outcome_of(rollout)].setdefault(prompt_of(rollout), rollout)
    layers = itertools.zip_longest(*(queue.values() for queue in queues.values()))
    picked = [rollout for layer in layers for rollout in layer if rollout is not None][:limit]
    prompts = list(dict.fromkeys(prompt_of(rollout) for rollout in picked))
    phases = list(PHASES)
    return sorted(picked, key=lambda r: (phases.index(r.phase), prompts.index(prompt_of(r))))


def prompt_of(rollout: Rollout) -> tuple[str, str]:
    """What tells prompts apart; the same one in another phase counts anew."""
    return rollout.phase, f"{rollout.row.get('task')}/{rollout.row.get('sample_id')}"


def outcome_of(rollout: Rollout) -> str:
    """`right` or `wrong` by the first reward; `trouble` where a reward or a tool call failed."""
    reward = _dict(rollout.row.get("reward"))
    calls = rollout.row.get("tool_calls")
    failed = isinstance(calls, list) and any(isinstance(call, dict) and not call.get("ok") for call in calls)
    total = number(reward.get("total"))
    if total is None or failed:
        return "trouble"
    first = number(next(iter(_dict(reward.get("values")).values()), None))
    return "right" if (total if first is None else first) >= RIGHT else "wrong"


def _card(rollout: Rollout, book: PictureBook, weights: dict[str, float]) -> Card:
    row = rollout.row
    messages = [message_from_json(message) for message in row["messages"]]
    prompt_length = int(row.get("num_prompt_messages", 0))
    prompt, response = messages[:prompt_length], messages[prompt_length:]
    calls = [call for call in row.get("tool_calls") or [] if isinstance(call, dict)]
    figures = _figures(prompt, response, calls, book)
    given = figures[: sum(len(message.images) for message in prompt)]
    reward = row.get("reward") or {}
    return Card(
        phase=rollout.phase,
        outcome=outcome_of(rollout),
        title=visible(str(row.get("sample_id", ""))),
        origin=_origin(row),
        turns=list(_turns(messages[:MAX_MESSAGES], figures)),
        hidden_turns=max(0, len(messages) - MAX_MESSAGES),
        figures=given[:MAX_FIGURES],
        hidden_figures=max(0, len(given) - MAX_FIGURES),
        gold=_plain(row.get("ground_truth")),
        answer=_answer(response),
        rewards=_rewards(reward, weights),
        total=number(reward.get("total")),
        advantage=number(row.get("advantage")),
        failed_calls=[_plain(call.get("error") or "failed") for call in calls if not call.get("ok")],
        facts=_facts(row),
    )


def _origin(row: dict[str, Any]) -> str:
    """Where in the run it is from; evaluations have step 0."""
    parts = [label(str(row.get("stage", "")))]
    if number(row.get("step")):
        parts.append(f"step {row['step']}")
    return " · ".join([*parts, label(str(row.get("task", "")))])


def _figures(
    prompt: Iterable[Message], response: Iterable[Message], calls: Sequence[dict[str, Any]], book: PictureBook
) -> list[Figure]:
    """Every image of the dialogue with the boxes that were zoomed into."""
    sources = [
        order for order, call in enumerate(calls, start=1) for _ in range(int(call.get("images") or 0))
    ]
    given = [(image, None) for message in prompt for image in message.images]
    returned = itertools.zip_longest((image for message in response for image in message.images), sources)
    shown = [*given, *((image, source) for image, source in returned if image is not None)]
    figures = [
        Figure(index, book.picture(image.path) if index < MAX_FIGURES else None, source)
        for index, (image, source) in enumerate(shown)
    ]
    for order, call in enumerate(calls, start=1):
        arguments = call.get("arguments")
        if not isinstance(arguments, dict):
            continue
        index, box = number(arguments.get("img_idx")), _box(arguments.get("bbox_2d"))
        if box and index is not None and index in range(len(figures)):
            figures[int(index)].boxes.append(ZoomBox(*box, order, bool(call.get("ok"))))
    return figures


def _box(corners: Any) -> tuple[float, float, float, float] | None:
    """(x, y, width, height) of the part inside the image; None where there is none."""
    if not isinstance(corners, list) or len(corners) != 4:
        return None
    values = [number(corner) for corner in corners]
    if None in values:
        return None
    x1, y1, x2, y2 = (min(1000.0, max(0.0, value)) for value in values if value is not None)
    return (x1, y1, x2 - x1, y2 - y1) if x1 < x2 and y1 < y2 else None


def _turns(messages: Iterable[Message], figures: Iterable[Figure]) -> Iterable[Turn]:
    remaining = iter(figures)
    for message in messages:
        pieces: list[Piece] = []
        for block in message.content:
            if block.image is not None:
                pieces.append(Piece("image", figure=next(remaining)))
            elif message.role == "assistant":
                pieces += _segments(shortened(block.text))
            else:
                pieces.append(Piece("text", visible(shortened(block.text))))
        yield Turn(message.role, pieces)


def _segments(text: str) -> list[Piece]:
    """An assistant's text with its calls and its thinking set apart; nothing of it is lost."""
    pieces: list[Piece] = []
    end = 0
    for match in _SEGMENTS.finditer(text):
        pieces.append(Piece("text", text[end : match.start()]))
        pieces.append(Piece("call" if match[1] else "think", match[0]))
        end = match.end()
    pieces.append(Piece("text", text[end:]))
    return [Piece(piece.kind, visible(piece.text.strip("\n"))) for piece in pieces if piece.text.strip()]


def _answer(response: Sequence[Message]) -> str:
    """The last assistant turn without thinking; "" where it is a call or there is none."""
    last = response[-1] if response and response[-1].role == "assistant" else None
    if last is None or "<tool_call>" in last.text:
        return ""
    return visible(shortened(_SEGMENTS.sub("", last.text).strip(), 400))


def _rewards(reward: dict[str, Any], weights: dict[str, float]) -> list[RewardLine]:
    values, parts, notes, errors = (_dict(reward.get(k)) for k in ("values", "parts", "notes", "errors"))
    return [
        RewardLine(
            name=visible(name),
            value=number(values.get(name)),
            weight=weights.get(name),
            parts=[
                (visible(k), v) for k, raw in _dict(parts.get(name)).items() if (v := number(raw)) is not None
            ],
            note=_plain(notes.get(name, "")),
            error=_plain(errors.get(name, "")),
        )
        for name in dict.fromkeys([*values, *errors])
    ]


def _weights(record: RunRecord) -> dict[str, float]:
    """Weight by reward name, as the config's tasks set it."""
    weights: dict[str, float] = {}
    for stage in record.stages:
        for task in (t for t in stage.get("tasks") or [] if isinstance(t, dict)):
            for reward in (r for r in task.get("rewards") or [] if isinstance(r, dict)):
                name = str(reward.get("name", "")).rpartition(":")[2]
                weights[name] = number(reward.get("weight", 1.0)) or 0.0
    return weights


def _facts(row: dict[str, Any]) -> list[tuple[str, str]]:
    tokens, sampled = number(row.get("num_tokens")), number(row.get("num_sampled"))
    found = {
        "group": row.get("group"),
        "episode": row.get("episode"),
        "tokens": None if tokens is None else f"{tokens:,.0f}",
        "sampled": None if sampled is None else f"{sampled:,.0f}",
        "version": row.get("version"),
        "ended": label(str(row["stop_reason"])) if row.get("stop_reason") else None,
    }
    return [(name, _plain(value)) for name, value in found.items() if value is not None]


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _plain(value: Any) -> str:
    return "" if value is None else visible(shortened(str(value), 400))
