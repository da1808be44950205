"""Reward functions with the signatures of verl's, EasyR1's and DeepEyes' own."""

import functools
from collections.abc import Callable
from typing import Any, TypedDict

import numpy as np

from posttrain.types import RewardInput, text_message
from rewards.sdk import Reward


def episode(text: str = "It is K", gold: Any = "K", **columns: Any) -> RewardInput:
    prompt = (text_message("user", "Which?"),)
    return RewardInput(prompt, (text_message("assistant", text),), text, gold, columns)


def value(judged: Reward, x: RewardInput) -> float:
    (score,) = judged.judge([x], {})
    assert score is not None
    return score.value


def right(response: str, gold: str) -> float:
    return float(response.endswith(gold))


def standard(data_source, solution_str, ground_truth, extra_info=None):
    return right(solution_str, ground_truth)


def with_services(
    data_source, solution_str, ground_truth, extra_info, sandbox_fusion_url=None, concurrent_semaphore=None
):
    assert sandbox_fusion_url is None
    return right(solution_str, ground_truth)


def word_problem(solution_str, ground_truth, method="strict", format_score=0.0, score=1.0):
    return score * right(solution_str, ground_truth)


def geometry(predict_str: str, ground_truth: str, use_boxed: bool = True, format_score: float = 0.1) -> float:
    return right(predict_str, ground_truth)


def looking(predict_str: str, ground_truth: str, extra_info: Any = None) -> float:
    assert "num_turns" in extra_info
    return right(predict_str, ground_truth)


def looking_late(predict_str, ground_truth, extra_info=None, judge_config=None, data_source=None):
    assert data_source == "maps"
    return right(predict_str, ground_truth)


def formula(model_output: str, ground_truth: str, timeout_score: float = 0) -> bool:
    return bool(right(model_output, ground_truth))


def program(completion, test_cases, continuous=False):
    return right(completion, test_cases), [{"passed": 1}]


def sandboxed(sandbox_fusion_url, semaphore, limit_mb, completion, test_cases, continuous=False):
    assert (sandbox_fusion_url, semaphore, limit_mb) == ("http://sandbox", None, 1024)
    return right(completion, test_cases)


def own_names(content, sol, **kwargs):
    return right(content, sol)


def own_order(source, text, label, info):
    assert source == "maps"
    assert info["num_turns"] == 2
    return right(text, label)


def gold_first(ground_truth, answer_text):
    return right(answer_text, ground_truth)


def by_position(solution_str, ground_truth, /):
    return right(solution_str, ground_truth)


def by_keyword(*, extra_info, ground_truth, solution_str):
    return right(solution_str, ground_truth)


def anything(**kwargs):
    assert set(kwargs) == {"data_source", "solution_str", "ground_truth", "extra_info"}
    return right(kwargs["solution_str"], kwargs["ground_truth"])


def any_number(*args):
    source, response, gold, _ = args
    assert source == "maps"
    return right(response, gold)


def a_column(question, solution_str, ground_truth):
    assert question == "Which?"
    return right(solution_str, ground_truth)


def sequential(reward_input: dict[str, Any], format_weight: float = 0.5) -> dict[str, float]:
    if not isinstance(reward_input, dict):
        raise ValueError("sequential")
    return {"overall": right(reward_input["response"], reward_input["ground_truth"]), "format": 1.0}


def typed(sample: dict[str, Any]) -> dict[str, float]:
    return {"overall": right(sample["response"], sample["ground_truth"])}


class Seen(TypedDict):
    response: str
    response_length: int
    ground_truth: str


def typed_by_name(sample: Seen) -> dict[str, float]:
    return {"overall": right(sample["response"], sample["ground_truth"])}


def annotated_as_text(sample: "dict[str, Any]") -> float:
    return right(sample["response"], sample["ground_truth"])


def annotated_as_nothing(solution_str: "NoSuchType", ground_truth: "str") -> float:  # type: ignore[name-defined] # noqa: F821
    return right(solution_str, ground_truth)


def everything(data_source, solution_str, ground_truth, extra_info=None, *args, **kwargs):
    assert not args
    assert not kwargs
    return right(solution_str, ground_truth)


def first_of_many(solution_str, ground_truth, *args):
    assert not args
    return right(solution_str, ground_truth)


async def by_a_judge(data_source, solution_str, ground_truth, extra_info, reward_router_address=None):
    return {"score": right(solution_str, ground_truth), "acc": True}


class Judge:
    def __init__(self, scale: float = 1.0):
        self.scale = scale

    def __call__(self, data_source, solution_str, ground_truth, extra_info=None):
        return self.scale * right(solution_str, ground_truth)

    def method(self, solution_str, ground_truth):
        return self.scale * right(solution_str, ground_truth)

    @staticmethod
    def still(solution_str, ground_truth):
        return right(solution_str, ground_truth)


class AsyncJudge:
    async def __call__(self, predict_str, ground_truth):
        return right(predict_str, ground_truth)


@functools.wraps(geometry)
def wrapped(*args: Any, **kwargs: Any) -> Any:
    return geometry(*args, **kwargs)


def batch(data_sources, solution_strs, ground_truths, extra_infos):
    assert len(data_sources) == len(extra_infos)
    return [right(r, g) for r, g in zip(solution_strs, ground_truths, strict=True)]


def batch_of_columns(predicts, ground_truths, questions, format_weight=0.1):
    assert questions == ["all"] * len(predicts)
    return [{"overall": right(r, g)} for r, g in zip(predicts, ground_truths, strict=True)]


def batch_of_anything(solution_strs, **kwargs):
    assert set(kwargs) == {"data_sources", "ground_truths", "extra_infos"}
    return np.array([right(r, g) for r, g in zip(solution_strs, kwargs["ground_truths"], strict=True)])


def batch_of_dicts(reward_inputs: list[dict[str, Any]], format_weight: float = 0.1) -> list[dict[str, float]]:
    if not isinstance(reward_inputs, list):
        raise ValueError("batch")
    return [{"overall": right(x["response"], x["ground_truth"])} for x in reward_inputs]


def typed_batch(inputs: list[dict[str, Any]]) -> list[dict[str, float]]:
    return batch_of_dicts(inputs)


async def batch_by_a_judge(data_sources, solution_strs, ground_truths, extra_infos):
    return batch(data_sources, solution_strs, ground_truths, extra_infos)


SINGLE: dict[str, Callable[..., Any]] = {
    **{
        f.__name__: f
        for f in (
            *(standard, with_services, word_problem, geometry, looking, looking_late, formula, program),
            *(own_names, own_order, gold_first, by_position, by_keyword, anything, any_number, a_column),
            *(sequential, typed, typed_by_name, annotated_as_text, annotated_as_nothing),
            *(by_a_judge, wrapped, everything, first_of_many),
        )
    },
    "lambda": lambda solution_str, ground_truth: float(ground_truth in solution_str),
    "class": Judge,
    "object": Judge(),
    "method": Judge().method,
    "static method": Judge.still,
    "async object": AsyncJudge(),
    "async class": AsyncJudge,
    "partial": functools.partial(word_problem, score=1.0, method="flexible"),
    "partial by position": functools.partial(sandboxed, "http://sandbox", None, 1024),
    "partial of a partial": functools.partial(functools.partial(word_problem, method="x"), score=1.0),
    "partial of async": functools.partial(by_a_judge, reward_router_address="http://judge"),
    "partial of a class": functools.partial(Judge, scale=1.0),
}
BATCHED: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (batch, batch_of_columns, batch_of_anything, batch_of_dicts, typed_batch, batch_by_a_judge)
}
