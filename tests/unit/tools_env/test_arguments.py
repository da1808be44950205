"""The check of a call's arguments: what jsonschema says, in bounded time."""

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from posttrain.files.strict_json import JsonObject
from tools_env.arguments import misfit

NAMES = st.sampled_from(["a", "b", "n", "text"])
VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-2, 2) | st.text("ab1é ", max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
PATTERNS = st.sampled_from(["^a", "b$", "^[ab]*$", r"\d", "a|1", "^$", "(?:ab)+"])
LEAVES: Any = st.one_of(
    st.fixed_dictionaries(
        {"type": st.sampled_from("string integer number boolean null array object".split())}
    ),
    st.fixed_dictionaries(
        {"type": st.just("string")}, optional={"pattern": PATTERNS, "minLength": st.integers(0, 2)}
    ),
    st.fixed_dictionaries({"pattern": PATTERNS}),
    st.fixed_dictionaries({"enum": st.lists(VALUES, min_size=1, max_size=3)}),
    st.fixed_dictionaries({"minimum": st.integers(-2, 2)}, optional={"maximum": st.integers(-2, 2)}),
    st.just({"$ref": "#/$defs/leaf"}),
)
SCHEMAS: Any = st.recursive(
    LEAVES,
    lambda inner: (
        st.fixed_dictionaries({"items": inner}, optional={"maxItems": st.integers(0, 2)})
        | st.fixed_dictionaries({"anyOf": st.lists(inner, min_size=1, max_size=2)})
        | st.fixed_dictionaries({"not": inner})
        | st.fixed_dictionaries(
            {"properties": st.dictionaries(NAMES, inner, max_size=3)},
            optional={
                "required": st.lists(NAMES, max_size=2, unique=True),
                "additionalProperties": st.booleans(),
            },
        )
    ),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(schema=SCHEMAS, leaf=LEAVES.filter(lambda each: "$ref" not in each), value=VALUES)
def test_arguments_fit_where_jsonschema_says_so(schema: dict[str, Any], leaf: Any, value: Any) -> None:
    schema = schema | {"$defs": {"leaf": leaf}}
    wrong = misfit(schema, value)
    assert (wrong is None) == Draft202012Validator(schema).is_valid(value)
    if wrong is not None:
        for part in wrong[0].replace("][", "]\n[").splitlines():
            value = value[int(part[1:-1]) if part[1].isdigit() else part[2:-2]]  # the place is there


@pytest.mark.parametrize("pattern", ["^(a|aa)+$", "^(a|a?)+$"])
def test_a_pattern_that_would_never_end_is_ended(pattern: str) -> None:
    with pytest.raises(TimeoutError):
        misfit({"pattern": pattern}, "a" * 5_000 + "!")


@pytest.mark.parametrize("keyword", ["patternProperties", "additionalProperties"])
def test_a_pattern_for_names_that_would_never_end_is_ended(keyword: str) -> None:
    by_name: JsonObject = {"patternProperties": {"^(a|aa)+$": {}}}
    schema = by_name if keyword == "patternProperties" else by_name | {"additionalProperties": False}
    with pytest.raises(TimeoutError):
        misfit(schema, {"a" * 5_000 + "!": 1})
    with pytest.raises(ValueError, match="not understood"):
        misfit(by_name | {"unevaluatedProperties": False}, {})


def test_a_schema_that_doubles_without_end_is_ended_in_its_own_thread() -> None:
    """Who only stopped waiting for it would leave a thread that fills the memory."""
    twice = {"anyOf": [{"$ref": "#/$defs/twice"}] * 2}
    schema: Any = {"$defs": {"twice": twice | {"type": "string"}}, "$ref": "#/$defs/twice"}
    below: Any = {"properties": {"n": {"anyOf": [{"$ref": "#/$defs/below"}] * 2}}}
    deep: Any = 1
    for _ in range(40):
        deep = {"n": deep}
    begun = time.monotonic()
    with pytest.raises((TimeoutError, RecursionError)):
        misfit(schema, 1, seconds=0.3)
    doubling = {"$defs": {"below": below | {"required": ["m"]}}, "$ref": "#/$defs/below"}
    with pytest.raises(TimeoutError):
        misfit(doubling, deep, seconds=0.3)
    assert time.monotonic() - begun < 5


def test_names_by_pattern_are_checked_as_jsonschema_does() -> None:
    schema: Any = {
        "properties": {"n": {"type": "integer"}},
        "patternProperties": {"^x": {"type": "string"}},
        "additionalProperties": {"type": "boolean"},
    }
    closed = schema | {"additionalProperties": False}
    for value in ({"n": 1, "xa": "b", "c": True}, {"xa": 1}, {"c": 1}, {"n": "1"}, {"xn": "n"}, 5):
        for each in (schema, closed):
            assert (misfit(each, value) is None) == Draft202012Validator(each).is_valid(value)


def test_references_lead_nowhere_else() -> None:
    for address in ("http://127.0.0.1:9/schema", "file:///etc/passwd", "#/$defs/none"):
        with pytest.raises(Exception, match=r"Unresolvable|PointerToNowhere|Wrapped"):
            misfit({"$ref": address}, 1)
