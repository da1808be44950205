"""Penalties on how long an answer became, and on never having ended."""

from posttrain.types import RewardInput, Score
from rewards.sdk import reward


@reward("truncation", low=-1.0, high=0.0)
def truncation(x: RewardInput) -> Score:
    """Score −1 if the episode was cut off at a length or turn limit, else 0.

    Formula: −[x.truncated]. What was written does not matter, so an empty answer gets 0 unless it was cut.

    Range: {−1, 0}. Source: Qwen3-VL report, "truncation" among the faults penalised (value assumed).
    """
    return Score(-1.0, note="cut off at a limit") if x.truncated else Score(0.0)


@reward("overlong", low=-1.0, high=0.0)
def overlong(x: RewardInput, limit: int, soft: int = 0) -> Score:
    """Score 0 up to a length, falling to −1 over a soft interval before the limit.

    Formula, with n the characters that the model wrote: 0 for n ≤ limit − soft;
    (limit − soft − n) / soft for limit − soft < n ≤ limit; −1 for n > limit. With soft = 0 the limit is hard.
    The model's turns count with their thinking. Characters and not tokens, because a reward sees text; one
    token has about four characters in English and one and a half in Chinese. An empty answer gets 0.

    Range: [−1, 0]. Source: DAPO (arXiv 2503.14476), eq. 13, "soft overlong punishment" (there in tokens).

    Args:
        x: The episode.
        limit: L_max, the length from which on everything is −1.
        soft: L_cache, the interval before it.

    Raises:
        ValueError: If not 0 ≤ soft ≤ limit and limit ≥ 1.
    """
    if limit < 1 or not 0 <= soft <= limit:
        raise ValueError(f"overlong: limit {limit} must be at least 1, and soft {soft} from 0 to the limit")
    length = len(written(x))
    note = f"{length} characters, limit {limit}"
    if length > limit:
        return Score(-1.0, note=note)
    return Score(min(0.0, (limit - soft - length) / soft) if soft else 0.0, note=note)


def written(x: RewardInput) -> str:
    """Return all that the model wrote, thinking included; its answer where no turns are kept."""
    turns = [message.text.strip() for message in x.response if message.role == "assistant"]
    return "\n".join(turns).strip() or x.answer.strip()
