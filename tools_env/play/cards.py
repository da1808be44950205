"""The four card games by which the Qwen2-VL report measures its agent (of RL4VLM, arXiv 2405.10292).

The rules are theirs; the pictures are drawn here. A formula may be said in one turn or in several.
"""

import itertools
import random
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction

from PIL import Image

from tools_env.play.table import RANKS, SUITS, Game, View, draw_cards, draw_lines, stacked

#: Where the dealer of blackjack stops.
DEALER_STOPS = 17
_TOKEN = re.compile(r"\s*(\d{1,2}|[-+*/()])")
MAX_FORMULA = 60


class NumberLine(Game):
    """Walk from one number to another by + and -."""

    rules = "Bring the current number to the target. Say + to add one, or - to take one away."

    def __init__(self, highest: int = 5, view: View = "image") -> None:
        """Choose the numbers.

        Args:
            highest: The numbers are 0 to this.
            view: How the state is shown.
        """
        super().__init__(view)
        if not 1 <= highest <= 999:
            raise ValueError(f"highest must be from 1 to 999, got {highest}")
        self.highest = highest

    def deal(self, rng: random.Random) -> None:
        """Draw two numbers that differ."""
        self.target, self.current = rng.sample(range(self.highest + 1), 2)

    def move(self, move: str) -> str | None:
        """Go one step."""
        if move not in ("+", "-"):
            return "Say + or -."
        self.current = min(self.highest, max(0, self.current + (1 if move == "+" else -1)))
        self.solved = self.current == self.target
        return None if self.solved else ""

    def seen(self) -> list[str]:
        """Return target and current number."""
        return [str(self.target), str(self.current)]

    def words(self) -> str:
        """Say both numbers."""
        return f"Target {self.target}, current {self.current}."

    def picture(self) -> Image.Image:
        """Write both numbers."""
        return draw_lines([f"Target: {self.target}", f"Current: {self.current}"])

    def moves(self) -> tuple[list[str], list[str]]:
        """Return the step towards the target, and both."""
        return (["+"] if self.current < self.target else ["-"]), ["+", "-"]


class Blackjack(Game):
    """Beat the dealer without going over 21."""

    rules = (
        "Blackjack: come nearer to 21 than the dealer, and not above it. J, Q and K count 10, an ace 1 or 11."
        " Say hit for another card, or stand."
    )

    def deal(self, rng: random.Random) -> None:
        """Draw two cards each, and all that may follow: what comes does not depend on the moves."""
        self.coming = [f"{rng.choice(RANKS)}{rng.choice(SUITS)}" for _ in range(24)]
        self.own, self.dealer = [self.coming.pop(), self.coming.pop()], [self.coming.pop(), self.coming.pop()]
        self.of_dealer = [self.coming.pop() for _ in range(10)]

    def move(self, move: str) -> str | None:
        """Take a card, or let the dealer play."""
        if move not in ("hit", "stand"):
            return "Say hit or stand."
        if move == "hit":
            self.own.append(self.coming.pop())
            if hand(self.own) > 21:
                return None
            if hand(self.own) < 21 and self.coming:
                return ""
        while hand(self.dealer) < DEALER_STOPS:
            self.dealer.append(self.of_dealer.pop())
        self.solved = hand(self.dealer) > 21 or hand(self.own) > hand(self.dealer)
        self.drawn = hand(self.dealer) == hand(self.own)
        return None

    drawn = False

    def rewards(self) -> Mapping[str, float]:
        """Count a draw as half in `score`."""
        return {**super().rewards(), "score": 0.5 if self.drawn else float(self.solved)}

    def seen(self) -> list[str]:
        """Return the dealer's open card, then one's own."""
        return [card[:-1] for card in (self.dealer[0], *self.own)]

    def words(self) -> str:
        """Say the cards."""
        dealer, *own = self.seen()
        return f"Dealer {dealer}, you {' '.join(own)}."

    def picture(self) -> Image.Image:
        """Draw the dealer's cards above one's own."""
        return stacked([draw_cards(self.dealer[:1], hidden=1), draw_cards(self.own)])

    def moves(self) -> tuple[list[str], list[str]]:
        """Hit below 17, which is nearly the best that can be done."""
        return (["hit"] if hand(self.own) < DEALER_STOPS else ["stand"]), ["hit", "stand"]


class Points(Game):
    """Make a number of cards by a formula that uses each of them once."""

    count, target, signs = 2, 12, "+*"

    def deal(self, rng: random.Random) -> None:
        """Draw cards from which the number can be made."""
        self.formula = ""
        while True:
            self.cards = [f"{rng.choice(RANKS)}{rng.choice(SUITS)}" for _ in range(self.count)]
            if solution := solve([point(card) for card in self.cards], self.target, self.signs):
                self.solution = solution
                return

    def move(self, move: str) -> str | None:
        """Write on at the formula; = ends it."""
        self.formula = (self.formula + move).replace(" ", "")[: MAX_FORMULA + 1]
        if "=" not in self.formula:
            if len(self.formula) > MAX_FORMULA:
                return None
            return f"So far: {self.formula}" if self.formula else "Say a formula that ends with =."
        formula = self.formula.partition("=")[0]
        used = sorted(map(int, re.findall(r"\d+", formula)))
        legal = not set(formula) & set("+-*/") - set(self.signs)
        legal = legal and used == sorted(point(card) for card in self.cards)
        self.solved = legal and value_of(formula) == self.target
        return None

    def seen(self) -> list[str]:
        """Return the ranks."""
        return [card[:-1] for card in self.cards]

    def words(self) -> str:
        """Say the cards."""
        return f"Cards {' '.join(self.seen())}."

    def picture(self) -> Image.Image:
        """Draw the cards."""
        return draw_cards(self.cards)

    def moves(self) -> tuple[list[str], list[str]]:
        """Return the whole formula, and all cards added up."""
        others = "+".join(str(point(card)) for card in self.cards)
        return [f"{self.solution}="], [f"{others}="]


class EzPoint(Points):
    """Make 12 of two cards."""

    rules = "Make 12 by a formula of + and * that uses both cards once. J, Q and K count 10. End it with =."


class Point24(Points):
    """Make 24 of four cards."""

    rules = (
        "Make 24 by a formula of + - * / ( ) that uses each of the four cards once. J, Q and K count 10, an"
        " ace 1. End it with =."
    )
    count, target, signs = 4, 24, "+-*/"


def point(card: str) -> int:
    """Return what a card counts in a formula."""
    rank = card[:-1]
    return 10 if rank in ("J", "Q", "K") else 1 if rank == "A" else int(rank)


def hand(cards: Sequence[str]) -> int:
    """Return what a hand counts in blackjack."""
    total = sum(map(point, cards))
    ace = any(card[:-1] == "A" for card in cards)
    return total + 10 if ace and total <= 11 else total


def solve(numbers: Sequence[int], target: int, signs: str = "+-*/") -> str:
    """Return a formula that makes a number of all the others; "" if there is none."""
    return _combine([(Fraction(number), str(number)) for number in numbers], Fraction(target), signs)


def _combine(parts: Sequence[tuple[Fraction, str]], target: Fraction, signs: str) -> str:
    if len(parts) == 1:
        return parts[0][1] if parts[0][0] == target else ""
    for (i, (a, left)), (j, (b, right)) in itertools.permutations(enumerate(parts), 2):
        rest = [part for number, part in enumerate(parts) if number not in (i, j)]
        made = [(a + b, "+"), (a * b, "*"), (a - b, "-")] + ([(a / b, "/")] if b else [])
        for value, sign in made:
            if sign not in signs:
                continue
            formula = f"{left}{sign}{right}" if len(parts) == 2 else f"({left}{sign}{right})"
            if found := _combine([*rest, (value, formula)], target, signs):
                return found
    return ""


def value_of(formula: str) -> Fraction | None:
    """Compute a formula of whole numbers, + - * / and brackets; None where it is none."""
    tokens, place = list[str](), 0
    while place < len(formula):
        found = _TOKEN.match(formula, place)
        if found is None:
            return None
        tokens.append(found[1])
        place = found.end()
    try:
        value, rest = _sum(tokens)
    except (IndexError, ValueError, ZeroDivisionError):
        return None
    return None if rest else value


def _sum(tokens: list[str]) -> tuple[Fraction, list[str]]:
    value, tokens = _product(tokens)
    while tokens and tokens[0] in "+-":
        other, rest = _product(tokens[1:])
        value, tokens = (value + other if tokens[0] == "+" else value - other), rest
    return value, tokens


def _product(tokens: list[str]) -> tuple[Fraction, list[str]]:
    value, tokens = _factor(tokens)
    while tokens and tokens[0] in "*/":
        other, rest = _factor(tokens[1:])
        value, tokens = (value * other if tokens[0] == "*" else value / other), rest
    return value, tokens


def _factor(tokens: list[str]) -> tuple[Fraction, list[str]]:
    if tokens[0] == "(":
        value, tokens = _sum(tokens[1:])
        if tokens[0] != ")":
            raise ValueError("a bracket is not closed")
        return value, tokens[1:]
    return Fraction(int(tokens[0])), tokens[1:]
