"""How long an answer became, weighed with whether it is right, and whether it ever ended."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from posttrain.plugins import is_declared_name
from posttrain.types import RewardInput, Score
from rewards.sdk import Reward, load_reward, reward

Unit = Literal["characters", "tokens"]


@reward("truncation", low=-1.0, high=0.0)
def truncation(x: RewardInput) -> Score:
    """Score −1 if the episode was cut off at a length or turn limit, else 0.

    Formula: −[x.truncated]. What was written does not matter, so an empty answer gets 0 unless it was cut.

    Range: {−1, 0}. Source: Qwen3-VL report, "truncation" among the faults penalised (value assumed).
    """
    return Score(-1.0, note="cut off at a limit") if x.truncated else Score(0.0)


@reward("overlong", low=-1.0, high=0.0)
def overlong(x: RewardInput, limit: int, soft: int = 0, unit: Unit = "characters") -> Score:
    """Score 0 up to a length, falling to −1 over a soft interval before the limit.

    Formula, with n the length of what the model wrote: 0 for n ≤ limit − soft;
    (limit − soft − n) / soft for limit − soft < n ≤ limit; −1 for n > limit. With soft = 0 the limit is hard.
    The model's turns count with their thinking, in characters or in the tokens that were sampled, those that
    end turns too. One token has about four characters in English and one and a half in Chinese. An empty
    answer gets 0.

    Range: [−1, 0]. Source: DAPO (arXiv 2503.14476), eq. 13, "soft overlong punishment", there in tokens, as
    in TRL's get_soft_overlong_punishment.

    Args:
        x: The episode.
        limit: L_max, the length from which on everything is −1.
        soft: L_cache, the interval before it.
        unit: In what both are counted.

    Raises:
        ValueError: If not 0 ≤ soft ≤ limit and limit ≥ 1, or if there are no tokens to count.
    """
    if limit < 1 or not 0 <= soft <= limit:
        raise ValueError(f"overlong: limit {limit} must be at least 1, and soft {soft} from 0 to the limit")
    length = _length(x, unit, "overlong")
    note = f"{length} {unit}, limit {limit}"
    if length > limit:
        return Score(-1.0, note=note)
    return Score(min(0.0, (limit - soft - length) / soft) if soft else 0.0, note=note)


@reward("cosine_length", low=-1.0, high=1.0)
def cosine_length(
    x: RewardInput,
    limit: int,
    right: Sequence[float] = (1.0, 0.5),
    wrong: Sequence[float] = (-1.0, -0.5),
    unit: Unit = "tokens",
    correct: str = "math",
    params: Mapping[str, object] | None = None,
) -> Score | None:
    """Score right answers the higher the shorter they are, and wrong ones the lower the shorter they are.

    Formula, with n the length of what the model wrote, and (s, l) the pair `right` where the reward `correct`
    gives its full marks, or `wrong` where it gives less: l + (s − l) · (1 + cos(π · min(n / limit, 1))) / 2,
    which is s for n = 0 and l from the limit on. Does not apply where `correct` does not. An empty answer is
    wrong, and gets the first of `wrong`.

    Range: [−1, 1]. Source: "Demystifying long chain-of-thought" (arXiv 2502.03373), appendix C.1, without its
    penalty at the limit, which `overlong` is; TRL's get_cosine_scaled_reward (the defaults), open-r1's
    (characters), ms-swift's cosine (wrong [-0.5, 0]).

    Args:
        x: The episode.
        limit: L_max, the length from which on nothing changes.
        right: Value of a right answer of length 0, and at the limit.
        wrong: Value of a wrong answer of length 0, and at the limit.
        unit: In what lengths are counted.
        correct: The reward that says whether the answer is right, by the name of an installed one.
        params: Parameters of that reward.

    Raises:
        ValueError: If the limit, a pair or `correct` makes no sense, or if there are no tokens to count.
    """
    if limit < 1:
        raise ValueError(f"cosine_length: limit {limit} must be at least 1")
    for name, pair in {"right": right, "wrong": wrong}.items():
        if len(pair) != 2 or not all(-1 <= value <= 1 for value in pair):
            raise ValueError(f"cosine_length: {name} must be two values from -1 to 1, not {pair!r:.100}")
    judge = _rule(correct, params or {})
    if (score := judge(x, **(params or {}))) is None:
        return None
    length = _length(x, unit, "cosine_length")
    is_right = score.value >= judge.high
    shortest, longest = right if is_right else wrong
    cosine = math.cos(math.pi * min(length / limit, 1.0))
    note = f"{'right' if is_right else 'wrong'}, {length} {unit}, limit {limit}"
    return Score(longest + 0.5 * (shortest - longest) * (1.0 + cosine), note=note)


def _rule(name: str, params: Mapping[str, object]) -> Reward:
    """Load an installed reward that judges one episode without asking a service.

    Raises:
        ValueError: If the name leads to none, or to one that does not take the parameters.
    """
    if not is_declared_name(name):  # what a client of the server may name runs installed code alone
        raise ValueError(f"cosine_length: correct must be the name of an installed reward, not {name!r:.100}")
    loaded = load_reward(name)
    if loaded.is_async or loaded.group:
        raise ValueError(f"cosine_length: correct must judge one answer by a rule, which {name!r} does not")
    loaded.check(params)
    return loaded


def _length(x: RewardInput, unit: Unit, name: str) -> int:
    """Count what the model wrote.

    Raises:
        ValueError: If it is to be counted in tokens, and nobody knows them.
    """
    if unit == "characters":
        return len(written(x))
    if not x.completion_ids and written(x):
        raise ValueError(
            f"{name} counts tokens, and the episode has text but no completion_ids: rollouts give them; a"
            " request or a file of answers must, or set unit: characters"
        )
    return len(x.completion_ids)


def written(x: RewardInput) -> str:
    """Return all that the model wrote, thinking included; its answer where no turns are kept."""
    turns = [message.text.strip() for message in x.response if message.role == "assistant"]
    return "\n".join(turns).strip() or x.answer.strip()
