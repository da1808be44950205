"""JSON in answers, schemas from datasets, and bombs in either."""

import json
import time
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.types import RewardInput
from rewards.builtin.structured_output import json_valid, structured_output
from rewards.reading.schemas import MAX_LENGTH, read_schema, violation

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
LEAVES = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(-1e6, 1e6) | TEXT
VALUES = st.recursive(
    LEAVES, lambda v: st.lists(v, max_size=4) | st.dictionaries(TEXT, v, max_size=4), max_leaves=12
)
OBJECTS = st.dictionaries(TEXT, VALUES, min_size=1, max_size=4)


def valid(answer: str) -> float:
    score = json_valid(RewardInput((), (), answer))
    assert score is not None
    return score.value


def structured(answer: str, gold: Any = None, **params: Any) -> float:
    score = structured_output(RewardInput((), (), answer, ground_truth=gold), **params)
    assert score is not None
    return score.value


@given(OBJECTS)
def test_gold_gets_full_marks_in_every_spelling(gold: dict[str, Any]) -> None:
    text = json.dumps(gold)
    for answer in (text, f"\n {text}\n\n", f"```json\n{json.dumps(gold, indent=1, ensure_ascii=False)}\n```"):
        assert valid(answer) == 1
        assert structured(answer, gold) == 1
    assert structured("", gold) == 0


@given(TEXT, OBJECTS)
def test_any_text_is_judged(text: str, gold: dict[str, Any]) -> None:
    assert valid(text) in (0, 1)
    assert 0 <= structured(text, gold) <= 1


@given(OBJECTS, OBJECTS)
def test_fields_are_a_share(gold: dict[str, Any], other: dict[str, Any]) -> None:
    assert 0 <= structured(json.dumps(other), gold) <= 1


def test_fields() -> None:
    gold = {"a": 1, "b": [1, 2], "c": {"d": "Tea"}}
    assert structured('{"a": 1.0, "b": [1, 2], "c": {"d": " tea "}, "note": 1}', gold) == 1
    assert structured('{"a": true, "b": [1, 2], "c": {"d": "Tea"}}', gold) == 0.75
    assert structured('{"a": 1, "b": [1, 2, 3, 4], "c": {"d": "Tea"}}', gold) == pytest.approx(4 / 6)
    assert structured('{"a": 1, "b": [], "c": 3}', gold) == 0.25
    assert structured("[]", gold) == 0


def test_the_schema_comes_from_a_column_or_a_parameter() -> None:
    schema = {"type": "object", "required": ["a"]}
    x = RewardInput((), (), "{}", columns={"form": json.dumps(schema)})
    assert structured_output(x) is None
    assert structured("{}", schema=schema) == 0
    score = structured_output(x, column="form")
    assert score is not None
    assert score.value == 0
    assert "required" in score.note
    assert structured('{"a": 1}', {"a": 2}, schema=schema) == 0


@given(VALUES)
def test_schemas_agree_with_jsonschema(value: Any) -> None:
    schema = {
        "anyOf": [
            {"type": "string", "maxLength": 3},
            {"type": "array", "uniqueItems": True, "items": {"type": ["integer", "boolean", "null"]}},
            {"type": "object", "additionalProperties": {"$ref": "#"}},
        ]
    }
    assert (violation(read_schema(schema), value) == "") == jsonschema.Draft202012Validator(schema).is_valid(
        value
    )


def test_equal_items_are_found_like_jsonschema_finds_them() -> None:
    schema = read_schema({"uniqueItems": True})
    assert violation(schema, [1, 1.0])
    assert violation(schema, [{"a": [1]}, {"a": [1.0]}])
    assert not violation(schema, [1, True, "1", [1]])


BOMB = {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(40)}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ([], "must be an object"),
        ("{", "not JSON"),
        ({"type": "strin"}, "wrong JSON schema"),
        ({"$ref": "https://example.org/schema"}, "only references within it"),
        ({"properties": {"a": {"$ref": "file:///etc/passwd"}}}, "only references within it"),
        ({"properties": {"a": {"$ref": "#/$defs/b"}}}, "does not have"),
        ({"properties": {"a": {"$schema": "http://json-schema.org/draft-07/schema#"}}}, "below its top"),
        ({"patternProperties": {"^(a+)+$": {}}}, "bounded time"),
        ({"pattern": "(?=a)b"}, "look-around"),
        ({"pattern": "(a)\\1"}, "backreferences"),
        ({"pattern": "a{1000}{1000}{1000}"}, "size limit"),
        ({"$ref": "#"}, "circle"),
        ({"$defs": BOMB | {"a40": {}}, "$ref": "#/$defs/a0"}, "multiply"),
        (json.loads('{"not":' * 60 + "{}" + "}" * 60), "nested"),
        ({"enum": ["x" * 200_000]}, "characters"),
    ],
)
def test_schemas_that_are_refused(schema: Any, message: str) -> None:
    start = time.process_time()
    with pytest.raises(ValueError, match=message):
        structured("{}", schema=schema)
    assert time.process_time() - start < 5


@pytest.mark.parametrize("gold", [{}, [], "text", 3])
def test_a_ground_truth_without_fields_is_refused(gold: Any) -> None:
    with pytest.raises(ValueError, match="ground_truth"):
        structured("{}", gold)


def test_a_property_may_have_a_keywords_name() -> None:
    schema = {"properties": {"patternProperties": {"type": "string"}, "$id": {"type": "string"}}}
    assert structured('{"patternProperties": "x", "$id": "y"}', schema=schema) == 1


def test_an_older_draft_does_not_lift_the_limits() -> None:
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "properties": {"a": {"$ref": "#"}},
        "pattern": "^(a+)+$",
    }
    assert structured(json.dumps({"a": "a" * 50_000 + "b"}), schema=schema) == 0


TREE = {"$defs": {"n": {"properties": {"c": {"anyOf": [{"$ref": "#/$defs/n"}] * 3}}}}, "$ref": "#/$defs/n"}


@pytest.mark.parametrize(
    "answer",
    [
        "[" * 10**6,
        "```x\n" * 200_000,
        '{"a": ' * 63 + "1" + "}" * 63,
        '{"c": ' * 60 + "1" + "}" * 60,
        "[" + "1," * 90_000 + "1]",
        "9" * 5000,
        '{"a": "\u0301\u0327' + "\u0327\u0301" * 40_000 + '"}',
        " " * 10**6,
    ],
    ids=["depth", "fences", "deep", "tree", "long", "digits", "marks", "space"],
)
def test_hostile_answers_are_judged_in_time(answer: str) -> None:
    start = time.process_time()
    for schema in (TREE, {"items": {"type": "integer"}, "contains": {"const": 2}, "uniqueItems": True}):
        assert 0 <= structured(answer, {"a": "text"}, schema=schema) <= 1
    assert valid(answer) in (0, 1)
    assert time.process_time() - start < 4


def test_more_json_than_can_be_checked_is_wrong() -> None:
    assert valid("[" + "1," * MAX_LENGTH + "1]") == 0
