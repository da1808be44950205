"""Is the answer JSON, of the form asked for, with the right content?"""

from collections.abc import Mapping

from posttrain.files.strict_json import JsonError
from posttrain.types import RewardInput, Score
from rewards.reading.answers import normalise
from rewards.reading.schemas import answer_json, read_schema, violation
from rewards.sdk import reward


@reward("json_valid")
def json_valid(x: RewardInput) -> Score:
    """Score 1 if the answer, or its one fenced block, is a JSON object or list, else 0.

    Formula: [the text parses as strict JSON ∧ its value is an object or a list]. Strict means RFC 8259
    without what breaks readers later: no NaN, no key twice, no half surrogate pairs, at most 64 levels and
    200,000 characters. A bare number, text or `null` is no structured answer. With several fenced blocks
    the answer is not clear and scores 0, as an empty answer does.

    Range: {0, 1}. Source: instruction "JSON format" of IFEval (arXiv 2311.07911), made strict.
    """
    try:
        value = answer_json(x.answer)
    except JsonError as error:
        return Score(0.0, note=f"not JSON: {error}")
    if not isinstance(value, dict | list):
        return Score(0.0, note=f"JSON, but a bare {type(value).__name__}")
    return Score(1.0)


@reward("structured_output")
def structured_output(
    x: RewardInput, schema: Mapping[str, object] | None = None, column: str = "schema"
) -> Score | None:
    """Score how much of the JSON asked for the answer delivers: its schema, then its fields.

    Formula: [a is JSON] · [a satisfies the schema] · f, where f is 1 without a ground truth, else
    (leaves of the ground truth with an equal leaf at the same place in a) / (leaves of the ground truth +
    leaves of surplus list items). Numbers are equal by value, texts after
    `rewards.reading.answers.normalise`, true and 1 are different. Fields that the ground truth does not
    name are the schema's business. An empty answer scores 0.

    Range: [0, 1]. Source: JSON Schema 2020-12 by `jsonschema`; field-level accuracy of key information
    extraction, as in CORD and SROIE (its treatment of lists is assumed).

    Args:
        x: `columns[column]` is the sample's JSON schema, as an object or JSON text; `ground_truth` is the
            expected object or list. With neither a schema nor a ground truth this does not apply.
        schema: The schema of samples without that column.
        column: Name of that column.

    Raises:
        ValueError: If the schema is wrong or refused (see `rewards.reading.schemas`), or the ground truth is
            empty or no object or list.
    """
    wanted = x.columns.get(column)
    wanted = schema if wanted is None else wanted
    if wanted is None and x.ground_truth is None:
        return None
    checked = None if wanted is None else read_schema(wanted)
    if x.ground_truth is not None and (not isinstance(x.ground_truth, dict | list) or not x.ground_truth):
        raise ValueError("ground_truth must be a JSON object or list that is not empty; correct the dataset")
    try:
        value = answer_json(x.answer)
    except JsonError as error:
        return Score(0.0, {"schema": 0.0, "fields": 0.0}, f"not JSON: {error}")
    if checked is not None and (reason := violation(checked, value)):
        return Score(0.0, {"schema": 0.0, "fields": 0.0}, reason)
    if x.ground_truth is None:
        return Score(1.0, {"schema": 1.0})
    right, total = _compare(x.ground_truth, value)
    return Score(right / total, {"schema": 1.0, "fields": right / total}, f"{right} of {total} fields")


def _compare(gold: object, value: object) -> tuple[int, int]:
    """Count the equal leaves, and all of them."""
    if isinstance(gold, dict) and gold and isinstance(value, dict):
        pairs = [_compare(item, value.get(key, _MISSING)) for key, item in gold.items()]
    elif isinstance(gold, list) and gold and isinstance(value, list):
        pairs = [_compare(a, b) for a, b in zip(gold, value, strict=False)]
        pairs += [(0, _leaves(item)) for item in gold[len(value) :] + value[len(gold) :]]
    else:
        return int(_equal(gold, value)), _leaves(gold)
    return sum(right for right, _ in pairs), sum(total for _, total in pairs)


_MISSING = object()


def _leaves(value: object) -> int:
    """Count how many values a tree holds; an empty list or object is one."""
    if isinstance(value, dict | list) and value:
        return sum(_leaves(item) for item in (value.values() if isinstance(value, dict) else value))
    return 1


def _equal(gold: object, value: object) -> bool:
    """Check whether two leaves are equal."""
    if isinstance(gold, str) and isinstance(value, str):
        if len(value) > 2 * len(gold) + 100:
            return False
        return normalise(gold) == normalise(value)
    if isinstance(gold, bool) or isinstance(value, bool):
        return gold is value
    return gold == value
