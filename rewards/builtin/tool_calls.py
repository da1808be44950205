"""Does the model look as often as the question needs?"""

import re

from posttrain.looks import different_looks
from posttrain.types import RewardInput, Score
from rewards.reading.units import has_content
from rewards.sdk import reward

#: Where targets stand, unless a task says otherwise.
TARGET_COLUMN = "target_tool_calls"
_MARKUP = re.compile(r"</?answer>|\\(?:boxed|fbox|text)\b", re.IGNORECASE)


@reward("tool_calls")
def tool_calls(x: RewardInput, target: int | None = None, column: str = TARGET_COLUMN) -> Score | None:
    """Score how close the number of useful tool calls comes to the sample's target; more does not pay.

    Formula, with n the calls that returned an image, u the different looks among them and t the target:
    max(0, (min(u, t) − max(0, n − t)) / t) for t ≥ 1, and [n = 0] for t = 0. Two calls of a tool are one
    look if they show the same region of one image, or the same pixels, whatever else they say
    (`posttrain.looks`). An episode without an answer scores 0, and punctuation is none. Calls are counted by
    the images that came back, so writing calls that fail earns nothing, and each call beyond the target, or
    repeated, costs as much as a missing one.

    Range: [0, 1]. Source: Qwen3-VL report, tool rewards, "tool calling": calls against a target estimated
    offline; the report gives no formula (assumed).

    Args:
        x: Has the target in its column, where one was estimated.
        target: The target of samples without one. With neither, this does not apply.
        column: The column that has the targets, as `posttrain data call-targets` writes them.

    Raises:
        ValueError: If the target is not a whole number from 0 up.
    """
    wanted = target if (told := x.columns.get(column)) is None else told
    if wanted is None:
        return None
    if not isinstance(wanted, int) or isinstance(wanted, bool) or wanted < 0:
        raise ValueError(f"{column} is {wanted!r}; it must be a whole number from 0 up")
    n, useful = sum(call.images > 0 for call in x.tool_calls), len(different_looks(x.tool_calls, x.response))
    note = f"{n} calls returned an image ({useful} different), target {wanted}"
    if not has_content(_MARKUP.sub("", x.answer)):
        return Score(0.0, note=f"no answer; {note}")
    if wanted == 0:
        return Score(float(n == 0), note=note)
    return Score(max(0.0, (min(useful, wanted) - max(0, n - wanted)) / wanted), note=note)
