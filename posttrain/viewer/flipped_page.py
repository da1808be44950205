"""The prompts that one model gets right and another wrong, as a page that needs nothing but itself."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from posttrain.evaluation.outcomes import Outcome, Outcomes
from posttrain.evaluation.paired import Paired
from posttrain.evaluation.table import p_text, signed
from posttrain.viewer.page import page, write_page
from posttrain.viewer.pictures import Picture, PictureBook
from posttrain.viewer.wording import shortened, visible

#: Flipped prompts of one comparison that are shown, each way.
MAX_SHOWN = 40
MAX_TEXT = 1200

#: Task, what is compared, with what, their outcomes, and the comparison.
Compared = tuple[str, str, str, Outcomes, Outcomes, Paired]


@dataclass(frozen=True)
class Flip:
    """A prompt on which two models differ.

    Attributes:
        name: Its row's id.
        question, gold: What was asked, and what is right.
        pictures: Its images.
        first, second: What each model answered, and how many of the answers are right.
    """

    name: str
    question: str
    gold: str
    pictures: list[Picture]
    first: tuple[str, str]
    second: tuple[str, str]


def write_flipped_page(path: Path, compared: Sequence[Compared]) -> Path:
    """Write a page of comparisons and of the prompts that changed.

    Args:
        path: Where it goes.
        compared: The comparisons.

    Raises:
        DiskFull: If there is no space.
    """
    book = PictureBook(path.parent)
    sections = []
    for task, first, second, before, after, pair in compared:
        sections.append(
            {
                "task": task,
                "first": visible(first),
                "second": visible(second),
                "pair": pair,
                "change": signed(100 * pair.difference),
                "interval": f"{signed(100 * pair.low)} – {signed(100 * pair.high)}",
                "p": p_text(pair.p),
                "gained": [_flip(name, before, after, book) for name in pair.gained[:MAX_SHOWN]],
                "lost": [_flip(name, before, after, book) for name in pair.lost[:MAX_SHOWN]],
            }
        )
    return write_page(path, page("flipped.html.jinja", sections=sections, most=MAX_SHOWN))


def _flip(name: str, before: Outcomes, after: Outcomes, book: PictureBook) -> Flip:
    asked = before[name]
    gold = asked.gold if isinstance(asked.gold, str) else json.dumps(asked.gold, ensure_ascii=False)
    pictures = [book.picture(image.path) for image in asked.images[:4]]
    return Flip(
        name=visible(shortened(name, MAX_TEXT)),
        question=visible(shortened(asked.question, MAX_TEXT)),
        gold=visible(shortened(gold, MAX_TEXT)),
        pictures=pictures,
        first=_answer(asked),
        second=_answer(after[name]),
    )


def _answer(outcome: Outcome) -> tuple[str, str]:
    """Return the first answer, and how many of them are right."""
    shown = visible(shortened(outcome.answers[0], MAX_TEXT))
    if len(outcome.answers) == 1:
        return shown, "right" if outcome.right else "wrong"
    return shown, f"{outcome.right} of {len(outcome.answers)} right"
