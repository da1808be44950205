"""Rows for what is played: prompts to play from, dialogues of a careless player, single actions."""

import json
import random
from pathlib import Path
from typing import Any, Literal

from posttrain.media.images import save_image
from posttrain.messages import message_to_json
from posttrain.types import Block, Box, Message, Role, Sample, text_message
from tools_env.games import Shown
from tools_env.play.cards import Blackjack, EzPoint, NumberLine, Point24
from tools_env.play.desktop import Desktop, played_turn
from tools_env.play.maze import Maze
from tools_env.play.screen import SIZE
from tools_env.play.table import Game

Played = Game | Desktop
GAMES: dict[str, type[Played]] = {
    "number_line": NumberLine,
    "blackjack": Blackjack,
    "ezpoint": EzPoint,
    "point24": Point24,
    "maze": Maze,
    "desktop": Desktop,
}
#: How an action is asked for where no tool is announced.
_ASKED = (
    " Answer with the next action alone, as JSON such as"
    ' {"action": "left_click", "coordinate": [500, 500]} or {"action": "type", "text": "abc"}.'
)


def write(
    directory: Path,
    *,
    game: str,
    kind: Literal["prompt", "played", "step"] = "prompt",
    count: int = 1000,
    split: str = "train",
    max_turns: int = 4,
    careless: float = 1.0,
    params: dict[str, Any] | None = None,
) -> None:
    """Write the rows of a game to `directory/data.jsonl`.

    Args:
        directory: An existing, empty folder.
        game: One of GAMES.
        kind: `prompt` (the rules, and the seed from which the environment deals), `played` (a dialogue), or
            `step` of the desktop (a screen, and the next right action as the reward `gui_action` takes it).
        count: Number of rows.
        split: Rows of different splits have different seeds.
        max_turns: Most turns of a dialogue.
        careless: Share of moves that the player makes at random, from 0 to 1.
        params: Of the environment.

    Raises:
        ValueError: If there is no such game, or it has no such rows.
    """
    if game not in GAMES:
        raise ValueError(f"game {game!r} is none of {', '.join(GAMES)}")
    if kind == "step" and GAMES[game] is not Desktop:
        raise ValueError(f"{game} has no rows of single actions; kind: step is for the desktop")
    with (directory / "data.jsonl").open("w", encoding="utf-8") as file:
        for number in range(count):
            seed = f"{split}-{number}"
            rules = text_message("user", GAMES[game].rules + "\n")
            sample = Sample(f"{game}-{kind}-{seed}", (rules,), columns={"seed": seed})
            made = GAMES[game](**(params or {}))
            messages: tuple[Message, ...] = sample.messages
            more: dict[str, Any] = {"seed": seed}
            if kind == "played":
                messages, more = _played(made, sample, max_turns, careless, directory), _tools(made)
            elif kind == "step" and isinstance(made, Desktop):
                messages, more = _one_action(made, sample, max_turns, directory)
            row = {"id": sample.id, "messages": [message_to_json(each) for each in messages]}
            file.write(json.dumps(row | more) + "\n")


def _tools(game: Played) -> dict[str, Any]:
    return {"tools": [spec.as_openai() for spec in game.specs]} if game.specs else {}


def _played(
    game: Played, sample: Sample, max_turns: int, careless: float, directory: Path
) -> tuple[Message, ...]:
    """Play a game; return the dialogue up to its last move."""
    rng = random.Random(f"player/{sample.id}")
    first = _message(game.start(sample), directory)
    messages = [Message("user", (*sample.messages[0].content, *first.content))]
    for turn in range(max_turns):
        good, allowed = game.moves()
        said = rng.choice(allowed if rng.random() < careless else good)
        messages.append(text_message("assistant", said))
        shown = _after(game, said)
        if shown is None or turn == max_turns - 1:
            break
        messages.append(_message(shown, directory, "tool" if isinstance(game, Desktop) else "user"))
    return tuple(messages)


def _after(game: Played, said: str) -> Any:
    """Return what is shown after a turn; None at the end."""
    if not isinstance(game, Desktop):
        return game.step(said)
    result = played_turn(game, said)
    return None if result is None else [*result.images, *([result.text] if result.text else [])]


def _one_action(
    desktop: Desktop, sample: Sample, max_turns: int, directory: Path
) -> tuple[tuple[Message, ...], dict[str, Any]]:
    """Play some right turns; return the screen that follows, and the action that is right on it."""
    rng = random.Random(f"player/{sample.id}")
    desktop.start(sample)
    for _ in range(rng.randrange(max_turns)):
        move = desktop.next_move()
        if move.action in ("terminate", "answer"):
            break
        played_turn(desktop, desktop.turn(move))
    move, result = desktop.next_move(), desktop.shown()
    shown: Shown = [desktop.task.said + _ASKED, *result.images, *([result.text] if result.text else [])]
    content = (*sample.messages[0].content, *_message(shown, directory).content)
    right: dict[str, Any] = {"action": move.action, **move.arguments}
    if move.widget is not None:
        box = Box(*move.widget.area, frame="pixel_original").to(desktop.frame, original=SIZE)
        right |= {"box": [box.x1, box.y1, box.x2, box.y2], "frame": desktop.frame}
    return (Message("user", content),), {"ground_truth": right}


def _message(shown: Any, directory: Path, role: Role = "user") -> Message:
    """Return what a game shows as a message, its images below a folder."""
    blocks = []
    for part in [shown] if isinstance(shown, str) else shown:
        if isinstance(part, str):
            blocks.append(Block("text", text=part))
            continue
        ref = save_image(part, directory / "images")
        path = str(Path(ref.path).relative_to(directory.absolute()))
        blocks.append(Block("image", image=type(ref)(path, ref.sha256)))
    return Message(role, tuple(blocks))
