"""The code reward: its forms of ground truth, what counts as equal, and what is a dataset's fault."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.types import RewardInput, Score
from rewards.builtin.code import code, last_python_block, same_output, same_value

ADD = {"inputs": ["1 2\n", "3 4\n", "5 5\n", "0 0\n"], "outputs": ["3\n", "7\n", "10\n", "0\n"]}
GOOD = "print(sum(map(int, input().split())))"


def score(source: str, truth: Any, **params: Any) -> Score:
    result = code(RewardInput((), (), f"```python\n{source}\n```", ground_truth=truth), **params)
    assert result is not None
    return result


def test_the_share_of_tests_passed() -> None:
    result = score("print(3 if '1' in input() else 10)", ADD)
    assert result.value == 0.5
    assert result.parts == {"passed": 2.0, "tests": 4.0}
    assert result.note == "2 of 4 tests passed; test 2: another output"


def test_all_or_nothing() -> None:
    assert score("print(3)", ADD, all_or_nothing=True).value == 0.0
    assert score(GOOD, ADD, all_or_nothing=True).value == 1.0
    assert score("print(3)", ADD, all_or_nothing=True).parts["tests"] == 4.0


def test_an_answer_without_code_scores_the_minimum() -> None:
    for answer in ("", " \n", "7", "```python\n```", "```python\nprint(7)", "```js\n7\n```"):
        result = code(RewardInput((), (), answer, ground_truth=ADD))
        assert result == Score(0.0, note="no fenced block of Python")
    assert code(RewardInput((), (), "7")) is None
    assert score("#" * 100_001 + "\n" + GOOD, ADD).value == 0.0


def test_white_space_around_the_answer_changes_nothing() -> None:
    for answer in (f"```python\n{GOOD}\n```", f"\n\n  ```python\n{GOOD}\n``` \n\t\n"):
        result = code(RewardInput((), (), answer, ground_truth=ADD))
        assert result is not None
        assert result.value == 1.0


def test_a_ground_truth_may_be_json_text() -> None:
    assert score(GOOD, json.dumps(ADD)).value == 1.0


def test_limits_are_parameters() -> None:
    slow = "import time\ntime.sleep(1.2)\n" + GOOD
    assert score(slow, ADD, seconds=0.2, total_seconds=3.0).value == 0.0
    assert score("x = bytearray(300 << 20)\n" + GOOD, ADD, memory_mb=256).value == 0.0
    assert score("x = bytearray(300 << 20)\n" + GOOD, ADD, memory_mb=512).value == 1.0
    with pytest.raises(ValueError, match="total_seconds"):
        score(GOOD, ADD, seconds=100.0)


BROKEN = [
    ("not JSON", "no JSON"),
    (7, "must be an object"),
    ({}, "equal length"),
    ({"inputs": [], "outputs": []}, "empty"),
    ({"inputs": ["1"], "outputs": []}, "equal length"),
    ({"inputs": [1], "outputs": ["1"]}, "texts"),
    ({"inputs": [1], "outputs": [1], "fn_name": "f"}, "list of its arguments"),
    ({"inputs": [[1]], "outputs": [1], "fn_name": "f()"}, "fn_name"),
    ({"inputs": [[1]], "outputs": [1], "fn_name": None}, "fn_name"),
    ({"tests": ""}, "tests"),
    ({"tests": "x = 1"}, "tests"),
    ({"tests": "assert f(lambda: 1)"}, "function"),
]


@pytest.mark.parametrize(("truth", "why"), BROKEN)
def test_a_broken_ground_truth_is_the_datasets_fault(truth: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        score("def f(x): return 1", truth)


@pytest.mark.parametrize(
    ("expected", "output", "same"),
    [
        ("1 2\n", "1  2", True),
        ("1 2", "1\n2", False),
        ("a\nb\n", "a \r\nb\n\n", True),
        ("0.5", ".50", True),
        ("0.5", "0.5000001", True),
        ("0.5", "0.51", False),
        ("1.0", "1", True),
        ("1", "1.0", False),
        ("1e3", "1000", True),
        ("Yes", "YES", False),
        ("", "\n", True),
        ("", "x", False),
        ("1.5", "nan", False),
        ("1.5", "1_5", False),
        ("10000000000000001", "10000000000000002", False),
        ("1.0", "9" * 5000, False),
    ],
)
def test_outputs(expected: str, output: str, same: bool) -> None:
    assert same_output(expected, output, 1e-6) is same


@pytest.mark.parametrize(
    ("expected", "value", "same"),
    [
        ([1, 2], (1, 2), True),
        ([1, 2], {1, 2}, False),
        ([1, 2], [1], False),
        ([], "", False),
        ([], None, False),
        ("1", 1, False),
        (1, "1", False),
        (1, 1.0, True),
        (True, 1, True),
        (None, None, True),
        (None, 0, False),
        (0, None, False),
        (0.3, 0.1 + 0.2, True),
        (0.3, 10**400, False),
        (0.3, float("nan"), False),
        ({"1": [2]}, {1: (2,)}, True),
        ({"1": 2}, {"1": 2, "2": 3}, False),
        ({"1": 2}, {10**5000: 2}, False),
        ({"": 2}, {(1,): 2}, False),
        (2**70, 2**70, True),
    ],
)
def test_values(expected: Any, value: Any, same: bool) -> None:
    assert same_value(expected, value, 1e-6) is same


@given(
    st.recursive(
        st.integers() | st.text() | st.booleans() | st.none(),
        lambda v: st.lists(v) | st.dictionaries(st.text(), v),
    )
)
def test_every_value_equals_itself(value: Any) -> None:
    assert same_value(value, value, 0.0)


@settings(max_examples=15)
@given(st.lists(st.integers() | st.text(st.characters(codec="utf-8"), max_size=8), max_size=5))
def test_the_gold_program_passes_its_own_tests(value: list[Any]) -> None:
    assert (
        score(f"def f(): return {value!r}", {"fn_name": "f", "inputs": [[]], "outputs": [value]}).value == 1.0
    )


@settings(max_examples=25)
@given(st.text(max_size=60))
def test_any_answer_gets_a_score_in_range(text: str) -> None:
    for answer in (text, f"```python\n{text}\n```"):
        result = code(RewardInput((), (), answer, ground_truth=ADD))
        assert result is not None
        assert result.value == 0.0


@pytest.mark.parametrize(
    ("text", "block"),
    [
        ("```python\na\n```\n```py\nb\n```", "b"),
        ("```python\na\n```\n```\nb\n```", "a"),
        ("```\na\n```\n```text\nb\n```", "a"),
        ("````python\n```\na\n```\n````", "```\na\n```"),
        ("~~~python\na\n~~~", "a"),
        ("```python title=x\na\n```", "a"),
        ("```python\na", ""),
        ("``` `` ```\na\n```", ""),
        ("`" * 100_000, ""),
    ],
)
def test_the_last_block(text: str, block: str) -> None:
    assert last_python_block(text) == block
