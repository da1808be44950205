"""A maze seen from above."""

import random
from collections import deque
from collections.abc import Mapping

from PIL import Image, ImageDraw

from tools_env.play.table import Game, View

STEPS = {"up": (0, -1), "down": (0, 1), "left": (-1, 0), "right": (1, 0)}
#: Pixels of a cell.
CELL = 24
Place = tuple[int, int]


class Maze(Game):
    """Lead the red dot to the green square."""

    rules = "Lead the red dot to the green square. Say the steps, such as: right right down. Walls stop it."

    def __init__(self, size: int = 5, view: View = "image") -> None:
        """Choose the size.

        Args:
            size: Cells on a side.
            view: How the state is shown.
        """
        super().__init__(view)
        if not 2 <= size <= 30:
            raise ValueError(f"size must be from 2 to 30, got {size}")
        self.size = size

    def deal(self, rng: random.Random) -> None:
        """Dig the maze: from every cell there is one way to every other."""
        self.passages: set[frozenset[Place]] = set()
        here: Place = (rng.randrange(self.size), rng.randrange(self.size))
        path, dug = [here], {here}
        while path:
            around = [place for place in self._around(path[-1]) if place not in dug]
            if not around:
                path.pop()
                continue
            place = rng.choice(around)
            self.passages.add(frozenset((path[-1], place)))
            dug.add(place)
            path.append(place)
        self.goal, self.place = rng.sample(sorted(dug), 2)
        self.begun_at = self.distance(self.place)

    def move(self, move: str) -> str | None:
        """Go some steps; an unknown word ends them."""
        words = move.replace(",", " ").split()
        if not words or words[0] not in STEPS:
            return "Say steps: up, down, left or right."
        for word in words:
            if word not in STEPS:
                return f"{word[:20]} is no step."
            dx, dy = STEPS[word]
            place = (self.place[0] + dx, self.place[1] + dy)
            if frozenset((self.place, place)) not in self.passages:
                return f"A wall: {word}."
            self.place = place
            self.solved = self.place == self.goal
            if self.solved:
                return None
        return ""

    def rewards(self) -> Mapping[str, float]:
        """Tell also how much of the way is done."""
        left = self.distance(self.place)
        return {**super().rewards(), "progress": max(0.0, 1 - left / self.begun_at)}

    def distance(self, start: Place) -> int:
        """Return the number of steps from a place to the goal."""
        return len(self._way(start))

    def seen(self) -> list[str]:
        """Return column and row of the dot, then of the goal, from 1."""
        return [str(number + 1) for number in (*self.place, *self.goal)]

    def words(self) -> str:
        """Say where dot and goal are, and where the dot can go."""
        free = [
            word
            for word, (dx, dy) in STEPS.items()
            if frozenset((self.place, (self.place[0] + dx, self.place[1] + dy))) in self.passages
        ]
        x, y, goal_x, goal_y = self.seen()
        return f"Dot {x},{y}; goal {goal_x},{goal_y}; open: {' '.join(free)}."

    def picture(self) -> Image.Image:
        """Draw walls, dot and goal."""
        side = self.size * CELL + 4
        image = Image.new("RGB", (side, side), "white")
        draw = ImageDraw.Draw(image)
        for x in range(self.size):
            for y in range(self.size):
                left, top = 2 + x * CELL, 2 + y * CELL
                right, bottom = left + CELL, top + CELL
                if frozenset(((x, y), (x + 1, y))) not in self.passages:
                    draw.line((right, top, right, bottom), "black", 3)
                if frozenset(((x, y), (x, y + 1))) not in self.passages:
                    draw.line((left, bottom, right, bottom), "black", 3)
        draw.rectangle((0, 0, side - 1, side - 1), outline="black", width=3)
        for (x, y), colour, shape in (
            (self.goal, "green", draw.rectangle),
            (self.place, "red", draw.ellipse),
        ):
            left, top = 2 + x * CELL, 2 + y * CELL
            shape((left + 6, top + 6, left + CELL - 6, top + CELL - 6), fill=colour)
        return image

    def moves(self) -> tuple[list[str], list[str]]:
        """Return the way to the goal, and single steps."""
        return [" ".join(self._way(self.place))], [*STEPS]

    def _way(self, start: Place) -> list[str]:
        """Return the shortest way to the goal."""
        ways: dict[Place, list[str]] = {start: []}
        waiting = deque([start])
        while waiting:
            here = waiting.popleft()
            if here == self.goal:
                return ways[here]
            for word, (dx, dy) in STEPS.items():
                place = (here[0] + dx, here[1] + dy)
                if frozenset((here, place)) in self.passages and place not in ways:
                    ways[place] = [*ways[here], word]
                    waiting.append(place)
        raise AssertionError("every cell can be reached")

    def _around(self, place: Place) -> list[Place]:
        x, y = place
        found = [(x + dx, y + dy) for dx, dy in STEPS.values()]
        return [(a, b) for a, b in found if 0 <= a < self.size and 0 <= b < self.size]


def _middle(place: Place) -> tuple[int, int, int, int]:
    left, top = 2 + place[0] * CELL, 2 + place[1] * CELL
    return left + 6, top + 6, left + CELL - 6, top + CELL - 6
