import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.files.strict_json import MAX_DEPTH, JsonError, parse_json

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc"), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(JSON)
def test_reads_what_json_writes(value: object):
    assert parse_json(json.dumps(value)) == value


@settings(deadline=None)
@given(st.text() | st.text('{}[]",:0123456789eE+-.\\u NaInfty'))
def test_any_text_is_read_or_refused(text: str):
    try:
        value = parse_json(text)
    except JsonError:
        return
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("{", "at character 1"),
        ("{} x", "Extra data"),
        ("[NaN]", "NaN is not a number"),
        ("[-Infinity]", "Infinity is not a number"),
        ("1e999", "too large"),
        ("9" * 5000, "too large"),
        ('{"a": 1, "b": 2, "a": 3}', "'a' appears twice"),
        ("[" * 100_000, "nested deeper"),
        ("[" * 100 + "]" * 100, "nested deeper"),
        ('{"a":' * 100_000, "nested deeper"),
        ('"\\ud800"', "surrogate"),
        ('{"\\udc00": 1}', "surrogate"),
        ('"\x00"', "Invalid control character"),
    ],
)
def test_refuses_with_a_reason(text: str, reason: str):
    with pytest.raises(JsonError, match=reason):
        parse_json(text)


def test_depth_limit_is_inclusive():
    parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    with pytest.raises(JsonError):
        parse_json("[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2))
