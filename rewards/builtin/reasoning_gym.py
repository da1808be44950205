"""The scorers of reasoning-gym's procedural puzzles, behind the contract of a reward.

Needs the extra `reasoning-gym`. Its scorers were read at one version: most compare texts, but some pass
the answer to `eval` or to the parser of sympy, which evaluates it too. Those are refused, and a few that
can be fooled.
"""

import copy
import functools
import importlib.metadata
import math
import re
from collections.abc import Callable
from typing import Any, TypeAlias

from reasoning_gym.factory import DATASETS, get_score_answer_fn  # pyright: ignore[reportMissingImports]

from posttrain.messages import without_thinking
from posttrain.types import RewardInput, Score
from rewards.sdk import reward

VERSION = "0.1.25"
if importlib.metadata.version("reasoning-gym") != VERSION:
    raise ImportError(f"the scorers of reasoning-gym were examined at {VERSION}; install that version")

#: Datasets whose scorers evaluate a text as Python.
EVALUATING = frozenset(
    "binary_matrix bitwise_arithmetic countdown intermediate_integration n_queens number_sorting"
    " polynomial_multiplication puzzle24 simple_integration spiral_matrix string_insertion".split()
)
#: Why a dataset's scorer must not see what a model writes.
REFUSED = {
    **dict.fromkeys(EVALUATING, "evaluates text as Python"),
    "rubiks_cube": "repeats a move as often as the answer says",
    "rush_hour": "repeats a move as often as the answer says",
    "game_of_life_halting": "takes any text but 'True' for 'False'",
    "coin_flip": "takes '0' for any probability",
    "complex_arithmetic": "takes 'nan' for any number",
    "composite": "passes on to any other",
}
#: A row of a dataset of reasoning-gym, and what scores an answer to it.
Entry: TypeAlias = dict[str, Any]
ScoreAnswer: TypeAlias = Callable[[str, Entry], float]
MAX_LENGTH = 10_000
_TAG = re.compile(r"</?answer>", re.IGNORECASE)


@reward("reasoning_gym")
def reasoning_gym(x: RewardInput) -> Score | None:
    """Score as reasoning-gym's own scorer of the dataset does, 0 for an empty answer.

    Formula: score_answer(a, entry), with a what stands in the last `<answer>…</answer>`, or else the whole
    answer after the thinking. Many of its scorers give up to 0.05 for any answer of the right form, and some
    (game_of_life, time_intervals) much for one that is nearly right. An answer on which the scorer fails, or
    of more than 10,000 characters, scores 0. The datasets in `REFUSED` are refused: their scorers evaluate
    text as Python (countdown, puzzle24, n_queens, …), have no bound, or can be fooled.

    Range: [0, 1]. Source: reasoning-gym 0.1.25 (2505.24760).

    Args:
        x: `ground_truth` is the dataset's entry: `{"answer": …, "metadata": {"source_dataset": …, …}}`;
            None means that this does not apply.

    Raises:
        ValueError: If the ground truth is no such entry, its dataset is unknown or refused, or the scorer
            gives the reference answer itself less than 1 (JSON turns tuples into lists, which some scorers
            do not take: arc_agi and rearc).
    """
    if x.ground_truth is None:
        return None
    scorer = _scorer(x.ground_truth)
    _check_reference(scorer, x.ground_truth)
    answer = _answer(x.answer)
    if not answer or len(answer) > MAX_LENGTH:
        return Score(0.0, note="no answer" if not answer else f"more than {MAX_LENGTH} characters")
    try:
        value = float(scorer(answer, copy.deepcopy(x.ground_truth)))
    except Exception as error:  # the entry has been checked, so the answer is what it fails on
        return Score(0.0, note=f"the answer cannot be read: {type(error).__name__}")
    return Score(min(1.0, max(0.0, value)) if math.isfinite(value) else 0.0)


def _scorer(entry: object) -> ScoreAnswer:
    metadata = entry.get("metadata") if isinstance(entry, dict) else None
    name = metadata.get("source_dataset") if isinstance(metadata, dict) else None
    if not isinstance(entry, dict) or not isinstance(name, str) or "answer" not in entry:
        raise ValueError(
            "ground_truth is no entry of reasoning-gym: it needs 'answer', and 'source_dataset' in 'metadata'"
        )
    if name in REFUSED:
        raise ValueError(f"ground_truth: the scorer of {name!r} {REFUSED[name]}; leave the dataset out")
    if name not in DATASETS:
        raise ValueError(f"ground_truth: reasoning-gym has no dataset {name!r}")
    return _scorer_by_name(name)


@functools.cache
def _scorer_by_name(name: str) -> ScoreAnswer:
    """Make a dataset's scorer, once, since making it may read files."""
    scorer: Any = get_score_answer_fn(name)  # its annotation says that it takes nothing
    return scorer


def _check_reference(scorer: ScoreAnswer, entry: Entry) -> None:
    """Refuse an entry whose reference answer its own scorer refuses; puzzles may have no reference."""
    reference = entry["answer"]
    if reference is not None and scorer(reference, copy.deepcopy(entry)) < 1:
        raise ValueError(
            f"ground_truth: reasoning-gym's scorer of {entry['metadata']['source_dataset']!r} refuses the"
            " reference answer itself; the entry is damaged, or does not survive JSON"
        )


def _answer(text: str) -> str:
    text = without_thinking(text)
    pieces = _TAG.split(text)
    closed = text.casefold().rfind("</answer>") > text.casefold().rfind("<answer>") >= 0
    return (pieces[-2] if closed else text).strip()
