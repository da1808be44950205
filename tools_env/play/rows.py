"""Rows for the games that ship: prompts to play from, and dialogues of a careless player for a cold start."""

import json
import random
from pathlib import Path
from typing import Any, Literal

from posttrain.files.strict_json import JsonObject
from posttrain.media.images import save_image
from posttrain.messages import message_to_json
from posttrain.types import Block, Message, Sample, text_message
from tools_env.play.cards import Blackjack, EzPoint, NumberLine, Point24
from tools_env.play.maze import Maze
from tools_env.play.table import Game

GAMES: dict[str, type[Game]] = {
    "number_line": NumberLine,
    "blackjack": Blackjack,
    "ezpoint": EzPoint,
    "point24": Point24,
    "maze": Maze,
}


def write(
    directory: Path,
    *,
    game: str,
    kind: Literal["prompt", "played"] = "prompt",
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
        kind: `prompt` (the rules, and the seed from which the environment deals) or `played` (a dialogue).
        count: Number of rows.
        split: Rows of different splits have different seeds.
        max_turns: Most turns of a dialogue.
        careless: Share of moves that the player makes at random, from 0 to 1.
        params: Of the environment.

    Raises:
        ValueError: If there is no such game.
    """
    if game not in GAMES:
        raise ValueError(f"game {game!r} is none of {', '.join(GAMES)}")
    with (directory / "data.jsonl").open("w", encoding="utf-8") as file:
        for number in range(count):
            seed = f"{split}-{number}"
            rules = text_message("user", GAMES[game].rules + "\n")
            sample = Sample(f"{game}-{kind}-{seed}", (rules,), columns={"seed": seed})
            made = GAMES[game](**(params or {}))
            messages = sample.messages
            if kind == "played":
                messages = _played(made, sample, max_turns, careless, directory)
            row: JsonObject = {"id": sample.id, "messages": [message_to_json(each) for each in messages]}
            file.write(json.dumps(row | ({"seed": seed} if kind == "prompt" else {})) + "\n")


def _played(
    game: Game, sample: Sample, max_turns: int, careless: float, directory: Path
) -> tuple[Message, ...]:
    """Play a game; return the dialogue up to its last move."""
    rng = random.Random(f"player/{sample.id}")
    first = _message(game.start(sample), directory)
    messages = [Message("user", (*sample.messages[0].content, *first.content))]
    for turn in range(max_turns):
        good, allowed = game.moves()
        said = rng.choice(allowed if rng.random() < careless else good)
        messages.append(text_message("assistant", said))
        shown = game.step(said)
        if shown is None or turn == max_turns - 1:
            break
        messages.append(_message(shown, directory))
    return tuple(messages)


def _message(shown: Any, directory: Path) -> Message:
    """Return what a game shows as a message, its images below a folder."""
    blocks = []
    for part in [shown] if isinstance(shown, str) else shown:
        if isinstance(part, str):
            blocks.append(Block("text", text=part))
            continue
        ref = save_image(part, directory / "images")
        path = str(Path(ref.path).relative_to(directory.absolute()))
        blocks.append(Block("image", image=type(ref)(path, ref.sha256)))
    return Message("user", tuple(blocks))
