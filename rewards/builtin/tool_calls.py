"""Does the model look as often as the question needs?"""

import json

from posttrain.types import RewardInput, Score
from rewards.sdk import reward


@reward("tool_calls")
def tool_calls(x: RewardInput, target: int | None = None) -> Score | None:
    """Score how close the number of useful tool calls comes to the sample's target; more does not pay.

    Formula, with n the calls that returned an image, u the different ones among them and t the target:
    max(0, (min(u, t) − max(0, n − t)) / t) for t ≥ 1, and [n = 0] for t = 0. An episode without an
    answer scores 0. Calls are counted by the images that came back, so writing calls that fail earns
    nothing, and each call beyond the target, or repeated, costs as much as a missing one.

    Range: [0, 1]. Source: Qwen3-VL report, tool rewards, "tool calling": calls against a target estimated
    offline; the report gives no formula (assumed).

    Args:
        x: `columns["target_tool_calls"]` is the target, where present.
        target: The target of samples without that column. With neither, this does not apply.

    Raises:
        ValueError: If the target is not a whole number from 0 up.
    """
    wanted = x.columns.get("target_tool_calls", target)
    if wanted is None:
        return None
    if not isinstance(wanted, int) or isinstance(wanted, bool) or wanted < 0:
        raise ValueError(f"target_tool_calls is {wanted!r}; it must be a whole number from 0 up")
    seen = [json.dumps([call.name, call.arguments], sort_keys=True) for call in x.tool_calls if call.images]
    n, useful = len(seen), len(set(seen))
    note = f"{n} calls returned an image ({useful} different), target {wanted}"
    if not x.answer.strip():
        return Score(0.0, note=f"no answer; {note}")
    if wanted == 0:
        return Score(float(n == 0), note=note)
    return Score(max(0.0, (min(useful, wanted) - max(0, n - wanted)) / wanted), note=note)
