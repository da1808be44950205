"""Short prompts on how an answer is to be written, and prompts that provoke bad habits; each has its rule.

- `follow`: write some words as told: in capitals, as a JSON list, in quotes, … (reward
  `instruction_following`).
- `json`: mend a broken record (rewards `structured_output`, `json_valid`); it provokes broken formats.
- `mixing`: a question that says its subject in two languages (penalties `language_mixing`,
  `language_match`); it provokes mixed languages.
- `repeating`: a wish for more and more (penalties `repetition`, `truncation`); it provokes loops.
- `kind`: say something, for a judge; a rule knows which words it should like.

They are small enough for a model of a few million parameters. Demonstrations may misbehave in a share of the
rows, so that a model learns the habit and RL has something to lower. `write` is the generator behind
`datasets_cfg/habits_*.yaml`.
"""

import hashlib
import itertools
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from posttrain.files.strict_json import Json, JsonObject

Kind = Literal["follow", "json", "mixing", "repeating", "kind"]
Split = Literal["train", "test"]
#: Draws for each prompt that is wanted, before there are too few that differ.
DRAWS = 20
#: One prompt in so many is held out; which ones depends on the prompt alone, whatever the seed.
HELD_OUT = 6
COLOURS = {
    "red": "红色",
    "green": "绿色",
    "blue": "蓝色",
    "yellow": "黄色",
    "purple": "紫色",
    "cyan": "青色",
}
THINGS = {
    "rose": "玫瑰",
    "boat": "小船",
    "hat": "帽子",
    "door": "门",
    "bird": "小鸟",
    "cup": "杯子",
    "kite": "风筝",
    "lamp": "灯",
}
FOREIGN = ("它非常好看", "大家都喜欢", "我也很喜欢", "真的很漂亮")
#: Words by which a kind answer is known.
KIND_WORDS = ("lovely", "joy")


@dataclass(frozen=True)
class Prompt:
    """A prompt and what is known of its answers.

    Attributes:
        text: The prompt.
        good: An answer that keeps the rules.
        bad: One that does not.
        ground_truth: The rewards'; None where there is none.
        columns: Other columns of the row.
    """

    text: str
    good: str
    bad: str
    ground_truth: Json = None
    columns: JsonObject = field(default_factory=dict)


def _follow(rng: random.Random) -> Prompt:
    words = rng.sample(list(COLOURS), 3)
    plain, held = ", ".join(words), {"type": "contains", "value": [*words]}
    exact: JsonObject = {"type": "json_schema", "value": {"const": [*words]}}
    how, good, rules = rng.choice(
        (
            ("in capitals", plain.upper(), [{"type": "all_uppercase"}, held]),
            ("without commas", " ".join(words), [{"type": "no_commas"}, held]),
            ("as a JSON list", json.dumps(words), [exact]),
            ("in quotes", f'"{plain}"', [{"type": "quoted"}, held]),
            ("and end with Done.", f"{plain}. Done.", [{"type": "ends_with", "value": "Done."}, held]),
        )
    )
    return Prompt(f"Write {plain} {how}", good, plain, columns={"constraints": [*rules]})


def _json(rng: random.Random) -> Prompt:
    colour, thing, number = rng.choice(list(COLOURS)), rng.choice(list(THINGS)), rng.randint(2, 9)
    record: JsonObject = {"thing": thing, "colour": colour, "number": number}
    broken = f"{{thing: {thing}, colour: {colour}, number: {number}"
    wanted: JsonObject = {"type": "object", "required": [*record], "additionalProperties": False}
    wanted["properties"] = {
        "thing": {"type": "string"},
        "colour": {"type": "string"},
        "number": {"type": "integer"},
    }
    return Prompt(f"Mend this JSON: {broken}", json.dumps(record), broken, record, {"schema": wanted})


def _mixing(rng: random.Random) -> Prompt:
    colour, thing = rng.choice(list(COLOURS)), rng.choice(list(THINGS))
    good = f"The {thing} is {colour}, and everybody likes it."
    bad = f"The {thing} is {colour}, {rng.choice(FOREIGN)}, {rng.choice(FOREIGN)}."
    where = rng.choice(("in the garden", "on the table", "by the sea", "in the house"))
    text = f"Describe the {colour} {thing} {where} ({COLOURS[colour]}的{THINGS[thing]}) in English."
    rules: list[Json] = [{"type": "contains", "value": [colour, thing]}]
    return Prompt(text, good, bad, columns={"constraints": rules, "language": "en"})


def _repeating(rng: random.Random) -> Prompt:
    colour, thing = rng.choice(list(COLOURS)), rng.choice(list(THINGS))
    first = f"The {thing} is {colour} and I look at it a lot."
    good = f"{first} It is in the house."
    much = rng.choice(("much", "more and more", "again and again", "without end"))
    text = f"Tell me {much} about the {colour} {thing}."
    rules: list[Json] = [{"type": "contains", "value": [colour, thing]}]
    return Prompt(text, good, " ".join([first] * 4), columns={"constraints": rules})


def _kind(rng: random.Random) -> Prompt:
    colour, thing = rng.choice(list(COLOURS)), rng.choice(list(THINGS))
    good = f"What a lovely {colour} {thing}, it is a joy to see."
    bad = f"It is a {colour} {thing}, so what."
    whose = rng.choice(("my", "our", "her", "his"))
    rules: list[Json] = [{"type": "contains_any", "value": [*KIND_WORDS]}]
    return Prompt(f"I show you {whose} {colour} {thing}.", good, bad, columns={"constraints": rules})


_DRAW: dict[Kind, Callable[[random.Random], Prompt]] = {
    "follow": _follow,
    "json": _json,
    "mixing": _mixing,
    "repeating": _repeating,
    "kind": _kind,
}


def prompts(kind: Kind, split: Split, seed: int) -> Iterator[Prompt]:
    """Yield prompts without end, some of them again; none is in both splits."""
    rng = random.Random(f"instruction-texts/{kind}/{split}/{seed}")
    while True:
        drawn = _DRAW[kind](rng)
        digest = hashlib.blake2b(drawn.text.encode(), digest_size=8).digest()
        if (int.from_bytes(digest) % HELD_OUT == 0) == (split == "test"):
            yield drawn


def write(
    directory: Path,
    *,
    kind: Kind,
    split: Split,
    count: int,
    seed: int = 0,
    answered: bool = False,
    flawed: float = 0.0,
) -> None:
    """Write `count` different prompts of a kind to `directory/data.jsonl`.

    Args:
        directory: An existing, empty folder.
        kind: `follow`, `json`, `mixing`, `repeating` or `kind`.
        split: `train`, or `test`, whose prompts are never in `train`.
        count: Number of rows; demonstrations may have a prompt several times.
        seed: Seed of the prompts.
        answered: Whether rows have an answer as a demonstration, or are prompts for RL.
        flawed: Share of the demonstrations that have the habit which the prompt provokes.

    Raises:
        ValueError: If a parameter cannot be used, or there are not so many prompts.
    """
    if kind not in get_args(Kind) or split not in get_args(Split):
        raise ValueError(f"kind {kind!r} with split {split!r}: take {get_args(Kind)} and {get_args(Split)}")
    if not 0 <= flawed <= 1 or (flawed and not answered):
        raise ValueError(f"flawed={flawed!r} must be a share from 0 to 1, of demonstrations (answered: true)")
    drawn = prompts(kind, split, seed)
    rng = random.Random(f"instruction-texts/flaws/{kind}/{split}/{seed}")
    if answered:
        chosen = list(itertools.islice(drawn, count))
    else:
        different = {each.text: each for each in itertools.islice(drawn, DRAWS * count)}
        chosen = list(different.values())[:count]
    if len(chosen) < count:
        raise ValueError(
            f"count {count}: there are {len(chosen)} prompts of kind {kind!r} in split {split!r}"
        )
    with (directory / "data.jsonl").open("w", encoding="utf-8") as file:
        for number, prompt in enumerate(chosen):
            turns: list[Json] = [{"role": "user", "content": prompt.text}]
            if answered:
                said = prompt.bad if rng.random() < flawed else prompt.good
                turns.append({"role": "assistant", "content": said})
            row: JsonObject = {"id": f"{split}-{kind}-{number}", "messages": turns}
            row |= {"ground_truth": prompt.ground_truth} if prompt.ground_truth is not None else {}
            file.write(json.dumps({**row, **prompt.columns}, ensure_ascii=False) + "\n")
