"""The bridge to reasoning-gym's scorers; most of it runs where the extra is installed."""

import importlib
import importlib.util
import inspect
import json
import types
from collections.abc import Iterator
from typing import Any

import pytest

from posttrain.plugins import PluginError
from posttrain.types import RewardInput
from rewards.sdk import load_reward

REFERENCE = "rewards.builtin.reasoning_gym:reasoning_gym"
installed = importlib.util.find_spec("reasoning_gym") is not None
needs_extra = pytest.mark.skipif(not installed, reason="needs the extra reasoning-gym")


@pytest.mark.skipif(installed, reason="the extra reasoning-gym is installed")
def test_without_the_extra_the_error_names_the_package() -> None:
    with pytest.raises(PluginError, match="needs the module 'reasoning_gym', which is missing"):
        load_reward(REFERENCE)


def entry(name: str) -> dict[str, Any]:
    """One puzzle as it comes out of a dataset's file."""
    factory = importlib.import_module("reasoning_gym.factory")
    return json.loads(json.dumps(factory.create_dataset(name, size=1, seed=7)[0]))


def score(puzzle: Any, answer: str) -> float:
    result = load_reward(REFERENCE)(RewardInput((), (), answer, ground_truth=puzzle))
    assert result is not None
    return result.value


def bridge() -> Any:
    return importlib.import_module("rewards.builtin.reasoning_gym")


@needs_extra
def test_every_dataset_gives_its_reference_full_marks_and_an_empty_answer_nothing() -> None:
    lost_in_json = {"arc_agi", "rearc"}
    for name in sorted(set(bridge().DATASETS) - set(bridge().REFUSED) - lost_in_json):
        puzzle = entry(name)
        before = json.dumps(puzzle)
        if puzzle["answer"] is not None:
            assert score(puzzle, puzzle["answer"]) == 1, name
            assert score(puzzle, f"<think>?</think>\n<answer>\n{puzzle['answer']}\n</answer>\n") == 1, name
        assert score(puzzle, " \n") == 0, name
        assert json.dumps(puzzle) == before, name


HOSTILE = ["nan", "inf", "[]", "{}", "null", "(" * 3000, "9" * 5000, "A∧" * 2000, "F+99999999", "1/0", "\x00"]


@needs_extra
def test_hostile_answers_neither_raise_nor_score() -> None:
    for name in sorted(set(bridge().DATASETS) - set(bridge().REFUSED) - {"arc_agi", "rearc"}):
        puzzle = entry(name)
        for answer in HOSTILE:
            assert answer == puzzle["answer"] or 0 <= score(puzzle, answer) < 0.5, (name, answer)


@needs_extra
def test_every_scorer_that_evaluates_text_is_refused() -> None:
    found = {name for name, (dataset, _) in bridge().DATASETS.items() if evaluates(dataset)}
    assert found == bridge().EVALUATING
    with pytest.raises(ValueError, match="evaluates text as Python"):
        score({"answer": "1", "metadata": {"source_dataset": "countdown"}}, "1")


def evaluates(dataset: type) -> bool:
    """Whether eval or a sympy parser is within reach of a dataset's scorer."""
    seen, todo = set(), [inspect.getattr_static(dataset, "score_answer")]
    while todo:
        function = getattr(todo[-1], "__func__", todo.pop())
        if not isinstance(function, types.FunctionType) or function in seen:
            continue
        seen.add(function)
        for name in names(function.__code__):
            used = function.__globals__.get(name)
            if name in ("eval", "exec", "compile", "sympify") or getattr(used, "__module__", "").startswith(
                "sympy.pars"
            ):
                return True
            if name == "parse_expr" and used is None:  # sympy.parse_expr
                return True
            if getattr(used, "__module__", "").startswith("reasoning_gym"):
                todo.append(used)
            todo.append(inspect.getattr_static(dataset, name, None))
    return False


def names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from names(constant)


@needs_extra
@pytest.mark.parametrize(
    ("puzzle", "message"),
    [
        ("5", "no entry"),
        ({"answer": "5"}, "no entry"),
        ({"metadata": {"source_dataset": "gcd"}}, "no entry"),
        ({"answer": "5", "metadata": {"source_dataset": "none_such"}}, "no dataset 'none_such'"),
        ({"answer": "5", "metadata": {"source_dataset": "rush_hour"}}, "repeats a move"),
    ],
)
def test_faults_of_the_dataset(puzzle: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(puzzle, "5")


@needs_extra
def test_an_entry_that_json_changed_is_an_error() -> None:
    with pytest.raises(ValueError, match="does not survive JSON"):
        score(entry("arc_agi"), "1 2")
