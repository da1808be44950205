"""What the games share: how a turn is read, what was seen in the picture, and how cards are drawn."""

import random
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

from posttrain.types import Sample
from tools_env.games import Environment, Shown

#: How a game shows its state: as a picture, in words, or both.
View = Literal["image", "text", "both"]
RANKS = ("A", "2", "3", "4", "5", "6", "7", "8", "9", "10", "J", "Q", "K")
SUITS = "♠♥♦♣"
#: A turn beyond this is no move.
MAX_TURN = 2000
_READING = re.compile(r"\[([^\[\]]{0,100})\]")
_CARD = (44, 60)


class Game(Environment):
    """A game whose state is shown at every turn; subclasses say what it is.

    A turn may begin with what is seen, in brackets: `[3, K] hit`. How often that is right is the reward
    `ocr`.

    Args:
        view: How the state is shown.
    """

    #: What a row's message says; the state follows.
    rules: str = ""

    def __init__(self, view: View = "image") -> None:
        if view not in ("image", "text", "both"):
            raise ValueError(f"view {view!r} is none of image, text, both")
        self.view: View = view
        self.solved = False
        self.turns = self.right_readings = 0

    def start(self, sample: Sample) -> Shown:
        """Deal: the row's column `seed` decides all that chance does."""
        seed = sample.columns.get("seed", sample.id)
        self.deal(random.Random(f"{type(self).__name__}/{seed}"))
        return self.shown()

    def step(self, said: str) -> Shown | None:
        """Make a move."""
        reading, move = read_turn(said)
        self.turns += 1
        self.right_readings += reading is not None and [*reading] == [each.casefold() for each in self.seen()]
        note = self.move(move)
        return None if note is None else self.shown(note)

    def rewards(self) -> Mapping[str, float]:
        """Tell whether it is solved, and the share of turns that said what is to be seen."""
        return {"solved": float(self.solved), "ocr": self.right_readings / max(1, self.turns)}

    def shown(self, note: str = "") -> list[str | Image.Image]:
        """Show a note and the state."""
        said = " ".join(filter(None, [note, self.words() if self.view != "image" else ""]))
        picture = [self.picture()] if self.view != "text" else []
        return [*picture, *([said] if said or not picture else [])]

    @abstractmethod
    def deal(self, rng: random.Random) -> None:
        """Make the first state."""

    @abstractmethod
    def move(self, move: str) -> str | None:
        """Make a move; return a note for the model, "" for none, None at the end."""

    @abstractmethod
    def seen(self) -> list[str]:
        """Return what is to be read in the picture, in its order."""

    @abstractmethod
    def words(self) -> str:
        """Say the state."""

    @abstractmethod
    def picture(self) -> Image.Image:
        """Draw the state."""

    @abstractmethod
    def moves(self) -> tuple[list[str], list[str]]:
        """Return moves that lead on, and others that are allowed."""


def read_turn(said: str) -> tuple[tuple[str, ...] | None, str]:
    """Return what a turn says it sees, None where it does not say, and the move that it makes."""
    said = said[:MAX_TURN]
    found = _READING.search(said)
    reading = None
    if found is not None:
        reading = tuple(part.strip().casefold() for part in found[1].split(","))
        said = said[: found.start()] + said[found.end() :]
    return reading, said.strip().strip(".!").casefold()


def draw_cards(cards: Sequence[str], hidden: int = 0) -> Image.Image:
    """Draw cards side by side, such as "K♥"; after them so many with their backs up."""
    width, height = _CARD
    count = len(cards) + hidden
    image = Image.new("RGB", (count * (width + 4) + 4, height + 8), "darkgreen")
    draw = ImageDraw.Draw(image)
    for number in range(count):
        left, top = 4 + number * (width + 4), 4
        box = (left, top, left + width - 1, top + height - 1)
        if number >= len(cards):
            draw.rectangle(box, fill="navy", outline="white")
            continue
        rank, suit = cards[number][:-1], cards[number][-1]
        draw.rectangle(box, fill="white", outline="black")
        draw.text((left + 4, top + 2), rank, "red" if suit in "♥♦" else "black", ImageFont.load_default(22))
        _draw_suit(draw, suit, (left + width // 2, top + 44))
    return image


def draw_lines(lines: Sequence[str], size: int = 20) -> Image.Image:
    """Draw lines of text."""
    image = Image.new("RGB", (128, 8 + (size + 8) * len(lines)), "white")
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        draw.text((8, 6 + number * (size + 8)), line, "black", ImageFont.load_default(size))
    return image


def stacked(images: Sequence[Image.Image]) -> Image.Image:
    """Put pictures below one another."""
    image = Image.new(
        "RGB", (max(each.width for each in images), sum(each.height for each in images)), "white"
    )
    top = 0
    for each in images:
        image.paste(each, (0, top))
        top += each.height
    return image


def _draw_suit(draw: ImageDraw.ImageDraw, suit: str, middle: tuple[int, int]) -> None:
    """Draw a suit as shapes, which every font lacks or has."""
    x, y = middle
    colour = "red" if suit in "♥♦" else "black"
    if suit == "♦":
        draw.polygon([(x, y - 9), (x + 7, y), (x, y + 9), (x - 7, y)], fill=colour)
    elif suit == "♣":
        for dx, dy in ((-5, 2), (5, 2), (0, -5)):
            draw.ellipse((x + dx - 5, y + dy - 5, x + dx + 5, y + dy + 5), fill=colour)
        draw.rectangle((x - 1, y, x + 1, y + 10), fill=colour)
    else:
        up = -1 if suit == "♠" else 1
        for dx in (-4, 4):
            draw.ellipse((x + dx - 5, y - 3 * up - 5, x + dx + 5, y - 3 * up + 5), fill=colour)
        draw.polygon([(x - 9, y - 2 * up), (x + 9, y - 2 * up), (x, y + 10 * up)], fill=colour)
        if suit == "♠":
            draw.polygon([(x - 9, y + 2), (x + 9, y + 2), (x, y - 10)], fill=colour)
            draw.rectangle((x - 1, y, x + 1, y + 10), fill=colour)
