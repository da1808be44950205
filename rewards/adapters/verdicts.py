"""What functions of other toolkits return, as verdicts of this one."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence, Set

from posttrain.types import Score
from rewards.sdk import RewardError, Verdict, number_of

#: Under which key of a dict the reward stands: verl's, EasyR1's and early verl's.
VALUE_KEYS = ("score", "overall", "reward")
#: Texts beside the score are for the report, which shows one line.
MAX_TEXT = 120


def verdict_of(found: object, name: str, extras: Mapping[str, object] | None = None) -> Verdict:
    """Return one episode's verdict.

    Args:
        found: A number of any kind, also an array of one; a dict, of which `score`, `overall` or `reward` is
            the value, other numbers become parts and texts the note; a tuple or a list, of which the first
            entry counts; or None.
        name: What the reward is called.
        extras: Numbers and texts from elsewhere, kept as those of a dict.

    Raises:
        RewardError: If a dict or a tuple holds no value.
    """
    if isinstance(found, Score):
        return found
    beside = dict(extras or {})
    if isinstance(found, Mapping):
        key = next((key for key in VALUE_KEYS if key in found), None)
        if key is None:
            raise RewardError(
                f"reward {name!r} returned a dict without 'score', 'overall' or 'reward': "
                f"{sorted(map(str, found))[:20]}"
            )
        beside |= {str(other): value for other, value in found.items() if other != key}
        found = found[key]
    elif isinstance(found, tuple | list):
        if not found:
            raise RewardError(f"reward {name!r} returned an empty {type(found).__name__}")
        return verdict_of(found[0], name, beside)
    if found is None:
        return None
    value = _alone(found)
    if (number := number_of(value)) is None:
        raise RewardError(f"reward {name!r} returned {value!r:.200}, not a number")
    numbers = {key: part for key, held in beside.items() if (part := number_of(_alone(held))) is not None}
    texts = [
        f"{key}: {' '.join(held.split())[:MAX_TEXT]}" for key, held in beside.items() if isinstance(held, str)
    ]
    parts = {key: part for key, part in numbers.items() if math.isfinite(part)}
    return Score(number, parts, "; ".join(texts))


def verdicts_of(
    found: object, name: str, count: int, extras: Sequence[Mapping[str, object]] = ()
) -> list[Verdict]:
    """Return the verdicts of a group: of a list, an array, a tensor or an iterator with one entry an episode.

    Raises:
        RewardError: If it is none, or holds more or fewer.
    """
    held: list[object] = []
    scalar = getattr(found, "shape", None) == ()  # of numpy and torch, which call themselves iterable
    if isinstance(found, Iterable) and not isinstance(found, str | bytes | Mapping | Set) and not scalar:
        held += itertools.islice(found, count + 1)
    if len(held) != count:
        given = f"a {type(found).__name__}" + (f" of {len(held)}" if held else "")
        raise RewardError(
            f"reward {name!r} returned {given} for {count} episodes, and not one value for each"
        )
    each = extras or [{}] * count
    return [verdict_of(one, name, extra) for one, extra in zip(held, each, strict=True)]


def _alone(value: object) -> object:
    """Return the one number of an array or a tensor that holds no other."""
    shape, reshape = getattr(value, "shape", None), getattr(value, "reshape", None)
    if isinstance(shape, tuple) and shape and math.prod(shape) == 1 and callable(reshape):
        return reshape(())
    return value
