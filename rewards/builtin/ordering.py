"""Are the things in the right order? By the pairs that are."""

import json
import re
from itertools import combinations
from typing import Literal, get_args

from posttrain.files.strict_json import JsonError, parse_json
from posttrain.messages import without_thinking
from posttrain.types import RewardInput, Score
from rewards.reading.answers import final_answer, normalise
from rewards.reading.references import references
from rewards.sdk import reward

Metric = Literal["pairs", "exact"]
#: Of a longer answer only the end is read.
MAX_LENGTH = 10_000
MAX_THINGS = 200
_SEPARATOR = re.compile(r"\s{0,3}(?:-{1,2}>|=>|[→⇒>,，、;；|\n]|\bthen\b)\s{0,3}|\s-\s", re.IGNORECASE)
#: What a sentence says before a thing: "The order is", "first", "and", "followed by".
_LEADING = re.compile(
    r"^(?:.{0,200}(?:\b(?:is|are|was|were)\s|[:：是为])\s{0,3})?"
    r"(?:(?:(?:and|then|next|finally|lastly|last|first(?:ly)?|second(?:ly)?|third(?:ly)?|followed by)\b"
    r"|和|然后|最后|首先|先|再)\s{0,3})*",
    re.IGNORECASE | re.DOTALL,
)
_NUMBERED = re.compile(r"^[ \t]{0,9}(?:[-*•]|\(?\d{1,3}[.)、:])[ \t]{1,9}(\S[^\n]{0,500})$", re.MULTILINE)


def _written(ground_truth: object) -> list[str]:
    """Write the things between arrows, as lines, and as JSON."""
    things = references(ground_truth)
    lines = "\n".join(f"{number}. {thing}" for number, thing in enumerate(things, 1))
    return [" → ".join(things), lines, json.dumps(things)]


@reward("ordering", written=_written)
def ordering(x: RewardInput, metric: Metric = "pairs") -> Score | None:
    """Score how far the things that the answer lists are in the right order.

    Formula: the share of all n·(n − 1) / 2 pairs of things that the answer lists in the reference's order,
    which is (1 + τ) / 2 with Kendall's τ where it lists all of them; or with `exact` [the same list]. A pair
    of which a thing is missing is wrong. A list that has a thing twice, or one that the reference has not,
    scores 0. The list is the final answer's: a JSON list, lines with numbers or bullets, parts between
    commas, semicolons, arrows or "then", or letters in a row where all things are single letters. Things are
    compared without case, white space and surrounding punctuation.

    Range: [0, 1]. Source: Kendall 1938; the treatment of lists that are no permutation is ours (assumed).

    Args:
        x: `ground_truth` is a list of at least two different texts or numbers in the right order; None means
            that this does not apply.
        metric: `pairs` or `exact`.

    Raises:
        ValueError: If the ground truth is no such list, or the metric neither of the two.
    """
    if metric not in get_args(Metric):
        raise ValueError(f"ordering: metric {metric!r} is neither pairs nor exact")
    if x.ground_truth is None:
        return None
    gold = [normalise(text) for text in references(x.ground_truth)]
    if not 2 <= len(gold) <= MAX_THINGS or len(set(gold)) < len(gold):
        raise ValueError(
            f"ground_truth {x.ground_truth!r:.80} is no list of 2 to {MAX_THINGS} different things"
        )
    found = _listed(without_thinking(x.answer)[-MAX_LENGTH:], gold)
    note = f"listed {', '.join(found)[:80]}"
    if len(set(found)) < len(found) or not set(found) <= set(gold):
        return Score(0.0, note=note)
    place = {thing: index for index, thing in enumerate(found)}
    right = sum(a in place and b in place and place[a] < place[b] for a, b in combinations(gold, 2))
    pairs = len(gold) * (len(gold) - 1) // 2
    return Score(float(found == gold) if metric == "exact" else right / pairs, note=note)


def _listed(answer: str, gold: list[str]) -> list[str]:
    """Return the normalised things that an answer lists, in order."""
    final = final_answer(answer)
    try:
        value = parse_json(final)
    except JsonError:
        value = None
    # The last line of a list with numbers stands for the whole list.
    lines = _NUMBERED.findall(answer if "\n" not in final and _NUMBERED.match(final) else final)
    parts = [str(item) for item in value] if isinstance(value, list) else lines or _SEPARATOR.split(final)
    things = [thing for part in parts if (thing := _thing(part, gold))]
    letters = [c for c in "".join(things) if c.isalnum()]
    if len(things) == 1 and all(len(thing) == 1 for thing in gold) and set(letters) <= set(gold):
        return letters
    return things


def _thing(part: str, gold: list[str]) -> str:
    """Return the thing that a part of a list names, without what a sentence says before it."""
    thing = normalise(part)
    bare = normalise(_LEADING.sub("", part.strip(), count=1))
    return bare if thing not in gold and bare in gold else thing
