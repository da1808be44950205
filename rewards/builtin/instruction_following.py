"""Does the answer keep to the constraints that its prompt states?"""

from posttrain.messages import without_thinking
from posttrain.types import RewardInput, Score
from rewards.reading.constraints import Answer, passes, read_constraints
from rewards.reading.units import has_content
from rewards.sdk import reward


@reward("instruction_following")
def instruction_following(x: RewardInput, mode: str = "share") -> Score | None:
    """Score the share of the sample's constraints that the answer satisfies.

    Formula: (1/n) Σᵢ [the answer satisfies constraint i], or the product of these for mode "all". An answer
    without a letter, digit or symbol scores 0, although it would satisfy "no commas".

    Range: [0, 1]. Source: IFEval (arXiv 2311.07911), strict accuracy by instruction ("share") and by prompt
    ("all"); the types are `rewards.reading.constraints.CHECKS`.

    Args:
        x: `columns["constraints"]`, else `ground_truth`, is a list of objects with a `type`, mostly a `value`
            and options, or the JSON text of one: `[{"type": "max_words", "value": 50}, {"type": "contains",
            "value": ["cat"], "count": 2}]`. With neither this does not apply.
        mode: "share" or "all".

    Raises:
        ValueError: If the list is empty, a type unknown, or a value wrong.
    """
    if mode not in ("share", "all"):
        raise ValueError(f"instruction_following: mode is {mode!r}; it must be 'share' or 'all'")
    listed = x.columns.get("constraints")
    listed = x.ground_truth if listed is None else listed
    if listed is None:
        return None
    constraints = read_constraints(listed)
    turns = [message.text for message in x.prompt if message.role == "user"]
    answer = Answer(without_thinking(x.answer), prompt=turns[-1] if turns else "")
    content = has_content(answer.text)
    kept = [content and passes(constraint, answer) for constraint in constraints]
    parts = {f"{i} {c['type']}": float(k) for i, (c, k) in enumerate(zip(constraints, kept, strict=True), 1)}
    broken = [part for part, value in parts.items() if not value]
    note = "broken: " + ", ".join(broken[:8]) if broken else ""
    return Score(float(all(kept)) if mode == "all" else sum(kept) / len(kept), parts, note)
