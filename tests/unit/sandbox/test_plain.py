"""Values that cross between processes: as they are, and whatever a hostile process writes in their place."""

import contextlib
import json
import os
import time
from collections import Counter, OrderedDict, deque
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.sandbox import frames, plain
from posttrain.sandbox.stand_ins import Link, LostError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
    | st.decimals(allow_nan=False) | st.fractions() | st.dates() | st.datetimes() | st.times()
    | st.timedeltas() | st.complex_numbers(allow_nan=False) | st.binary().map(bytearray)
    | st.sampled_from([int, str, len, range(3), slice(1, 2), type(None)]),
    lambda v: st.lists(v, max_size=3) | st.tuples(v, v) | st.lists(v, max_size=3).map(deque)
    | st.dictionaries(st.text() | st.integers(), v, max_size=3)
    | st.sets(st.integers(), max_size=3) | st.frozensets(st.text(), max_size=3)
    | st.lists(st.text(max_size=2)).map(Counter)
    | st.dictionaries(st.text(), v, max_size=3).map(OrderedDict),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_values_cross_as_they_are(value: Any) -> None:
    def elsewhere(other: object) -> object:
        raise AssertionError(f"{other!r} is plain data")

    back = plain.decode(json.loads(json.dumps(plain.encode(value, elsewhere))), elsewhere)
    assert (back, type(back)) == (value, type(value))


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=4),
        lambda v: st.lists(v, max_size=3)
        | st.dictionaries(
            st.sampled_from("object builtin named defaultdict deque range slice Decimal date bytes".split()),
            v, min_size=1, max_size=1,
        ),
    )
)  # fmt: skip
def test_a_forged_reply_is_nonsense_and_no_more(value: Any) -> None:
    (reply_r, reply_w), (request_r, request_w) = os.pipe(), os.pipe()
    try:
        frames.send(reply_w, {"value": [value, []], "error": None})
        link = Link(reply_r, request_w)
        link.deadline = time.monotonic() + 5
        with contextlib.suppress(LostError):
            link.ask(0, "call")
    finally:
        for descriptor in (reply_r, reply_w, request_r, request_w):
            os.close(descriptor)
