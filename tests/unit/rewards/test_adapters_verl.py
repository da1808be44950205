"""Reward functions of the forms that verl, EasyR1 and DeepEyes call, unchanged."""

import contextlib
import functools
import inspect
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.adapters import from_trl, from_verl
from rewards.sdk import RewardError
from tests.unit.rewards.verl_functions import (
    BATCHED,
    SINGLE,
    Judge,
    any_number,
    batch,
    batch_of_dicts,
    by_a_judge,
    episode,
    geometry,
    own_names,
    program,
    sequential,
    standard,
    value,
)


@pytest.mark.parametrize("name", SINGLE)
def test_a_function_is_given_what_its_signature_takes(name: str) -> None:
    judged = from_verl(SINGLE[name])
    assert not judged.group
    columns = {"data_source": "maps", "question": "Which?"}
    assert value(judged, episode("It is K", **columns)) == 1.0
    assert value(judged, episode("It is B", **columns)) == 0.0
    assert judged.is_async == ("async" in name or "judge" in name)


@pytest.mark.parametrize("name", BATCHED)
def test_a_batch_is_a_group(name: str) -> None:
    judged = from_verl(BATCHED[name])
    assert judged.group
    xs = [episode(text, questions="all") for text in ("K", "B", "It is K")]
    assert [score and score.value for score in judged.judge(xs, {})] == [1.0, 0.0, 1.0]
    assert judged.is_async == ("judge" in name)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (geometry, "geometry"),
        (functools.partial(geometry, use_boxed=False), "geometry"),
        (Judge, "Judge"),
        (Judge(), "Judge"),
        (Judge().method, "method"),
        (lambda solution_str: 1.0, "<lambda>"),
    ],
)
def test_a_reward_has_the_name_of_what_it_is_made_of(function: Any, name: str) -> None:
    assert from_verl(function).name == name
    assert from_verl(function, name="mine").name == "mine"


@pytest.mark.parametrize(
    "columns",
    [
        {"reward_model": {"style": "rule", "ground_truth": "K"}},
        {"reward_model": '{"style": "rule", "ground_truth": "K"}'},
        {"extra_info": {"ground_truth": "K", "index": 3}},
        {"extra_info": '{"ground_truth": "K"}'},
        {"reward_model": {"style": "model"}, "extra_info": {"ground_truth": "K"}},
        {"reward_model": None, "extra_info": {"ground_truth": "K"}},
        {"reward_model": "rule", "extra_info": {"ground_truth": "K"}},
    ],
)
@pytest.mark.parametrize("function", [standard, geometry, sequential, batch, batch_of_dicts, own_names])
def test_the_gold_is_found_where_verls_rows_have_it(function: Any, columns: dict[str, Any]) -> None:
    judged = from_verl(function)
    assert value(judged, episode("It is K", None, **columns)) == 1.0
    assert value(judged, episode("It is B", None, **columns)) == 0.0
    assert value(judged, episode("It is B", "B", **columns)) == 1.0  # the sample's own comes first


@pytest.mark.parametrize(
    "columns",
    [{}, {"reward_model": {}}, {"reward_model": {"ground_truth": None}}, {"extra_info": {"answer": "K"}}],
)
@pytest.mark.parametrize(
    "function",
    [
        *(standard, geometry, program, own_names, sequential, batch, batch_of_dicts, by_a_judge, any_number),
        lambda solution_str, ground_truth=None: float(solution_str == ground_truth),
    ],
)
def test_a_gold_that_is_nowhere_is_an_error(function: Any, columns: dict[str, Any]) -> None:
    with pytest.raises(RewardError, match=r"ground_truth, reward_model\.ground_truth and extra_info"):
        from_verl(function, name="f").judge([episode("K", None, **columns)], {})


@pytest.mark.parametrize(
    "function",
    [
        lambda solution_str: float("K" in solution_str),
        lambda solution_str, extra_info: float("K" in solution_str),
        lambda solution_str, **kwargs: float("K" in solution_str and "ground_truth" not in kwargs),
        lambda solution_strs, **kwargs: [float("ground_truths" not in kwargs)] * len(solution_strs),
    ],
)
def test_a_function_without_a_gold_needs_none(function: Any) -> None:
    assert value(from_verl(function), episode("K", None)) == 1.0


@given(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3)))
def test_golds_of_any_kind_arrive_as_they_are(gold: Any) -> None:
    seen: list[Any] = []

    def keep(solution_str: str, ground_truth: Any) -> float:
        seen.append(ground_truth)
        return 0.0

    rows = [episode("K", None, reward_model={"ground_truth": gold})]
    rows.append(episode("K", None, reward_model=json.dumps({"ground_truth": gold})))
    for row in rows:
        if gold is None:
            with pytest.raises(RewardError):
                from_verl(keep)(row)
        else:
            from_verl(keep)(row)
    assert seen == [] if gold is None else seen == [gold, gold]


@pytest.mark.parametrize("function", [lambda: 1.0, lambda ground_truth, extra_info: 1.0])
def test_a_function_must_take_the_response(function: Any) -> None:
    with pytest.raises(RewardError, match="solution_str"):
        from_verl(function)


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b, c: 1.0,
        lambda a, b, c, d: 1.0,
        lambda a, b, c, d, e: 1.0,
        lambda question, text: 1.0,
        lambda question_text: 1.0,
        lambda ground_truth, image_path: 1.0,
        lambda held, ground_truth: 1.0,
    ],
)
def test_which_argument_is_the_response_must_be_clear(function: Any) -> None:
    with pytest.raises(RewardError, match="solution_str"):
        from_verl(function)(episode(held="x"))


@pytest.mark.parametrize(
    ("function", "columns"),
    [
        (lambda text, truth: (text, truth), {}),
        (lambda gold, prediction_text: (prediction_text, gold), {}),
        (lambda reference_answer, out: (out, reference_answer), {}),
        (lambda student, labels: (student, labels), {}),
        (lambda answer, solution: (answer, solution), {}),
        (lambda answer, solution: (answer, solution), {"solution": "K"}),
        (lambda question, text, gold: (text, gold), {"question": "Which?"}),
        (lambda level, text, gold: (text, gold), {"extra_info": {"level": 3}}),
        (lambda solution_str, sol: (solution_str, sol), {}),
        (lambda ground_truth, said: (said, ground_truth), {}),
    ],
)
def test_arguments_with_names_of_their_own(function: Any, columns: dict[str, Any]) -> None:
    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> float:
        return float(function(*args, **kwargs) == ("It is B", "K"))

    assert value(from_verl(checked), episode("It is B", **columns)) == 1.0


def test_an_argument_that_nobody_has_is_named() -> None:
    judged = from_verl(lambda solution_str, ground_truth, tool_rewards: 1.0, name="f")
    with pytest.raises(RewardError, match=r"'tool_rewards'.*columns: level.*partial"):
        judged(episode(level=3))
    assert value(judged, episode(tool_rewards=[1])) == 1.0
    assert value(judged, episode(extra_info={"tool_rewards": [1]})) == 1.0


def test_functions_of_the_other_form_are_told_apart() -> None:
    with pytest.raises(RewardError, match=r"'prompts'.*from_trl"):
        from_verl(lambda prompts, completions, **kwargs: [1.0]).judge([episode()], {})
    with pytest.raises(RewardError, match=r"'data_source'.*from_verl"):
        from_trl(standard).judge([episode()], {})


class Recorder:
    """A function of any signature, which keeps what it is bound to."""

    def __init__(self, parameters: list[inspect.Parameter]):
        self.__signature__ = inspect.Signature(sorted(parameters, key=lambda taken: taken.kind))
        self.__name__ = "recorder"
        self.bound: dict[str, Any] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> float:
        self.bound = self.__signature__.bind(*args, **kwargs).arguments
        return 0.5


KINDS = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
)
RESPONSES = ("solution_str", "predict_str", "model_output", "completion", "response", "my_text")
TAKEN = st.tuples(
    st.sampled_from(RESPONSES),
    st.sets(st.sampled_from(["ground_truth", "data_source", "extra_info", "question"])),
    st.randoms(use_true_random=False),
    st.booleans(),
    st.booleans(),
)


@given(TAKEN)
def test_any_signature_of_known_arguments_is_served(taken: tuple[str, set[str], Any, bool, bool]) -> None:
    response, others, random, takes_all, batched = taken
    plural = "" if not batched or response == "my_text" else "s"
    names = {name: name if name == "question" else name + plural for name in (response, *sorted(others))}
    parameters = [inspect.Parameter(name, random.choice(KINDS)) for name in names.values()]
    random.shuffle(parameters)
    if takes_all:
        parameters.append(inspect.Parameter("rest", inspect.Parameter.VAR_KEYWORD))
    recorder = Recorder(parameters)
    judged = from_verl(recorder)
    with contextlib.suppress(RewardError):  # a batch must return more than a number, but it was called
        judged.judge([episode("It is B", question="Which?", data_source="maps")], {})
    right: dict[str, Any] = {response: "It is B", "ground_truth": "K"}
    right |= {"data_source": "maps", "question": "Which?"}
    for name, own in names.items():
        (one,) = recorder.bound[own] if plural else [recorder.bound[own]]
        if name == "extra_info":
            assert (one["question"], one["num_turns"]) == ("Which?", 2)
        else:
            assert one == right[name]


def test_a_class_that_needs_arguments_is_refused_with_the_remedy() -> None:
    class Scaled:
        def __init__(self, scale: float):
            self.scale = scale

        def __call__(self, solution_str: str) -> float:
            return self.scale

    with pytest.raises(RewardError, match=r"Scaled.*scale.*instance"):
        from_verl(Scaled)
    assert value(from_verl(Scaled(0.5)), episode()) == 0.5
