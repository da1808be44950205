"""Trajectories as cards: which dozen a reader learns most from, and what each one shows."""

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from posttrain.run.rows import EpisodeRow, line_of
from posttrain.types import ImageRef, Message, RewardResult
from posttrain.viewer.pictures import Picture, PictureBook
from posttrain.viewer.records import Candidate, RunContents
from posttrain.viewer.wording import label, link_to, shortened, visible
from posttrain.viewer.zoom import ZoomBox, zoom_box

MAX_CARDS = 12
MAX_FIGURES = 8
MAX_MESSAGES = 24
#: Most characters of a raw row; of more, the beginning and the end.
MAX_RAW = 20_000
PHASES = {"first": "first steps", "last": "last steps", "evaluation": "evaluation"}
OUTCOMES = ("right", "wrong", "trouble")
#: Full marks of the first reward count as right, as they do in the evaluation.
RIGHT = 1.0
# A model's turn: its calls and its thinking, also where a tag is never closed.
_SEGMENTS = re.compile(r"(<tool_call>.*?(?:</tool_call>|\Z))|(<think>.*?(?:</think>|\Z))", re.DOTALL)


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
    """An episode, ready to be shown.

    `figures` are those of the prompt, the others stand in their turns; `place` and `link` say where the row
    is recorded, and `raw` is the row as JSON.
    """

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
    place: str
    link: str
    raw: str


def build_cards(run: RunContents) -> list[Card]:
    """Make cards of the most instructive episodes, early ones first, those of one prompt together."""
    book = PictureBook(run.path)
    tasks = (task for stage in run.record.stages for task in stage.tasks)
    weights = {name: weight for task in tasks for name, weight in task.weights.items()}
    return [_card(candidate, book, weights, run.path) for candidate in choose(run.candidates)]


def choose(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Pick `MAX_CARDS` episodes in turns from every phase and outcome.

    Within these, prompts come first that were answered both rightly and wrongly (side by side they show
    what the difference was), then those with the greatest advantages; no prompt twice in a place.
    """
    outcomes: dict[tuple[str, str], set[str]] = {}
    spread: dict[tuple[str, str], float] = {}
    for candidate in candidates:
        prompt = prompt_of(candidate)
        outcomes.setdefault(prompt, set()).add(outcome_of(candidate.row))
        spread[prompt] = max(spread.get(prompt, 0.0), abs(candidate.row.advantage or 0.0))

    def rank(candidate: Candidate) -> tuple[bool, float]:
        prompt = prompt_of(candidate)
        return not {"right", "wrong"} <= outcomes[prompt], -spread[prompt]

    queues: dict[tuple[str, str], dict[tuple[str, str], Candidate]] = {
        place: {} for place in itertools.product(PHASES, OUTCOMES)
    }
    for candidate in sorted(candidates, key=rank):
        place = candidate.phase, outcome_of(candidate.row)
        queues[place].setdefault(prompt_of(candidate), candidate)
    layers = itertools.zip_longest(*(queue.values() for queue in queues.values()))
    picked = [candidate for layer in layers for candidate in layer if candidate is not None][:MAX_CARDS]
    prompts = list(dict.fromkeys(map(prompt_of, picked)))
    phases = list(PHASES)
    return sorted(picked, key=lambda each: (phases.index(each.phase), prompts.index(prompt_of(each))))


def prompt_of(candidate: Candidate) -> tuple[str, str]:
    """Return what tells prompts apart; the same one in another phase counts anew."""
    return candidate.phase, f"{candidate.row.task}/{candidate.row.sample_id}"


def outcome_of(row: EpisodeRow) -> str:
    """Return `right` or `wrong` by the first reward; `trouble` where a reward or a tool call failed."""
    if row.reward is None or row.reward.total is None or not all(call.ok for call in row.tool_calls):
        return "trouble"
    first = next(iter(row.reward.values.values()), None)
    return "right" if (row.reward.total if first is None else first) >= RIGHT else "wrong"


def _card(candidate: Candidate, book: PictureBook, weights: dict[str, float], run: Path) -> Card:
    row = candidate.row
    figures = _figures(row, book)
    given = figures[: sum(len(message.images) for message in row.prompt)]
    return Card(
        phase=candidate.phase,
        outcome=outcome_of(row),
        title=visible(row.sample_id),
        origin=_origin(row),
        turns=list(_turns(row.messages[:MAX_MESSAGES], figures)),
        hidden_turns=max(0, len(row.messages) - MAX_MESSAGES),
        figures=given[:MAX_FIGURES],
        hidden_figures=max(0, len(given) - MAX_FIGURES),
        gold=_plain(row.ground_truth),
        answer=_answer(row.response),
        rewards=_rewards(row.reward, weights) if row.reward else [],
        total=row.total,
        advantage=row.advantage,
        failed_calls=[_plain(call.error or "failed") for call in row.tool_calls if not call.ok],
        facts=_facts(row),
        place=visible(f"{candidate.file}:{candidate.line}"),
        link=link_to(candidate.file),
        raw=visible(shortened(_raw(run / candidate.file, candidate.line), MAX_RAW)),
    )


def _raw(path: Path, line: int) -> str:
    """Return a line of a file as it was written, only indented; "" where it is not there any more."""
    text = line_of(path, line)
    try:
        return json.dumps(json.loads(text), ensure_ascii=False, indent=1)
    except (ValueError, RecursionError):
        return text


def _origin(row: EpisodeRow) -> str:
    """Return where in the run an episode is from; evaluations have step 0."""
    step = [f"step {row.step}"] if row.step else []
    return " · ".join([label(row.stage), *step, label(row.task)])


def _figures(row: EpisodeRow, book: PictureBook) -> list[Figure]:
    """Return every image of the dialogue with the boxes that were zoomed into."""
    given = [image for message in row.prompt for image in message.images]
    returned = [image for message in row.response for image in message.images]
    calls = list(enumerate(row.tool_calls, start=1))
    sources = itertools.chain.from_iterable(itertools.repeat(order, call.images) for order, call in calls)
    shown: list[tuple[ImageRef, int | None]] = [(image, None) for image in given]
    shown += [(image, next(sources, None)) for image in returned]
    figures = [
        Figure(index, book.picture(image.path) if index < MAX_FIGURES else None, source)
        for index, (image, source) in enumerate(shown)
    ]
    for order, call in calls:
        index, box = zoom_box(call, order) or (-1, None)
        if box is not None and index in range(len(figures)):
            figures[index].boxes.append(box)
    return figures


def _turns(messages: Iterable[Message], figures: Iterable[Figure]) -> Iterable[Turn]:
    remaining = iter(figures)
    for message in messages:
        pieces: list[Piece] = []
        for block in message.content:
            if block.image is not None:
                pieces.append(Piece("image", figure=next(remaining)))
            elif block.video is not None:
                pieces.append(Piece("text", visible(shortened(f"[video {block.video.paths[0]}]"))))
            elif message.role == "assistant":
                pieces += _segments(shortened(block.text))
            else:
                pieces.append(Piece("text", visible(shortened(block.text))))
        yield Turn(message.role, pieces)


def _segments(text: str) -> list[Piece]:
    """Cut an assistant's text into text, calls and thinking; nothing of it is lost."""
    pieces: list[Piece] = []
    end = 0
    for match in _SEGMENTS.finditer(text):
        pieces.append(Piece("text", text[end : match.start()]))
        pieces.append(Piece("call" if match[1] else "think", match[0]))
        end = match.end()
    pieces.append(Piece("text", text[end:]))
    return [Piece(piece.kind, visible(piece.text.strip("\n"))) for piece in pieces if piece.text.strip()]


def _answer(response: Sequence[Message]) -> str:
    """Return the last assistant turn without thinking; "" where it is a call or there is none."""
    last = response[-1] if response and response[-1].role == "assistant" else None
    if last is None or "<tool_call>" in last.text:
        return ""
    return visible(shortened(_SEGMENTS.sub("", last.text).strip(), 400))


def _rewards(reward: RewardResult, weights: dict[str, float]) -> list[RewardLine]:
    return [
        RewardLine(
            name=visible(name),
            value=reward.values.get(name),
            weight=weights.get(name),
            parts=[(visible(part), value) for part, value in reward.parts.get(name, {}).items()],
            note=_plain(reward.notes.get(name)),
            error=_plain(reward.errors.get(name)),
        )
        for name in dict.fromkeys([*reward.values, *reward.errors])
    ]


def _facts(row: EpisodeRow) -> list[tuple[str, str]]:
    found = {
        "group": row.group,
        "episode": row.episode,
        "tokens": None if row.num_tokens is None else f"{row.num_tokens:,}",
        "sampled": None if row.num_sampled is None else f"{row.num_sampled:,}",
        "version": row.version,
        "ended": label(row.stop_reason) if row.stop_reason else None,
    }
    return [(name, _plain(value)) for name, value in found.items() if value is not None]


def _plain(value: object) -> str:
    return "" if value is None else visible(shortened(str(value), 400))
