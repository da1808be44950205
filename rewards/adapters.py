"""Rewards written for other toolkits, used here unchanged."""

import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from posttrain.types import Message, RewardInput, Score
from rewards.sdk import GroupRewardFunction, Reward, RewardError, Verdict


def from_trl(
    function: GroupRewardFunction, name: str = "", low: float = 0.0, high: float = 1.0, chat: bool = True
) -> Reward:
    """Make a reward of TRL's form, `f(prompts, completions, **columns) -> list[float | None]`.

    The function sees a whole group at once, as TRL shows it a batch. Every argument is a list with one entry
    an episode: `prompts` and `completions`, the sample's columns, and its ground truth as `ground_truth`,
    `solution` and `answer` where no column has that name. Arguments that it does not take are left out.

    Args:
        function: The reward function.
        name: A short name; the function's if empty.
        low: Its least value.
        high: Its greatest value.
        chat: Whether prompts and completions are lists of messages, as TRL passes conversational data; else
            they are texts.

    Raises:
        RewardError: If the function asks for an argument that this toolkit does not have, such as
            `trainer_state` without a default.

    Example:
        def format_reward(completions, **kwargs):
            return [float("<answer>" in c[0]["content"]) for c in completions]

        tagged = from_trl(format_reward)  # in the YAML: my_rewards.py:tagged
    """
    name = name or function.__name__
    parameters = inspect.signature(function).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    def judge(xs: Sequence[RewardInput]) -> Sequence[Verdict] | Awaitable[Sequence[Verdict]]:
        columns: dict[str, Sequence[object]] = {
            key: [x.ground_truth for x in xs] for key in ("ground_truth", "solution", "answer")
        }
        for key in {key for x in xs for key in x.columns}:
            columns[key] = [x.columns.get(key) for x in xs]
        columns["prompts"] = [_chat(x.prompt) if chat else _text(x.prompt) for x in xs]
        columns["completions"] = [_completion(x) if chat else _text(x.response) or x.answer for x in xs]
        for key, parameter in parameters.items():
            required = parameter.default is parameter.empty and parameter.kind not in (
                parameter.VAR_KEYWORD,
                parameter.VAR_POSITIONAL,
            )
            if required and key not in columns:
                raise RewardError(f"TRL reward {name!r} asks for {key!r}, which the samples do not have")
        return function(**{k: v for k, v in columns.items() if takes_all or k in parameters})

    async def judge_async(xs: Sequence[RewardInput]) -> Sequence[Verdict]:
        scores = judge(xs)
        return await scores if inspect.isawaitable(scores) else scores

    chosen = judge_async if inspect.iscoroutinefunction(function) else judge
    chosen.__doc__ = function.__doc__
    return Reward(name, chosen, low, high, group=True)


def from_verl(
    compute_score: Callable[..., float | dict[str, Any]], name: str = "", low: float = 0.0, high: float = 1.0
) -> Reward:
    """Make a reward of verl's form, `compute_score(data_source, solution_str, ground_truth, extra_info)`.

    The function returns a number, or a dict whose "score" is the value and whose other numbers become parts.
    `data_source` is the sample's column of that name ("" without one), `extra_info` its column of that name
    or all of its columns, and `solution_str` the whole of the model's last turn.

    Args:
        compute_score: The function.
        name: A short name; the function's if empty.
        low: Its least value.
        high: Its greatest value.

    Example:
        geometry = from_verl(geo3k.compute_score)  # in the YAML: my_rewards.py:geometry
    """
    name = name or compute_score.__name__

    def judge(x: RewardInput) -> Verdict:
        extra = x.columns.get("extra_info", x.columns)
        turns = [message.text for message in x.response if message.role == "assistant"]
        found = compute_score(
            data_source=x.columns.get("data_source", ""),
            solution_str=turns[-1] if turns else x.answer,
            ground_truth=x.ground_truth,
            extra_info=extra,
        )
        if not isinstance(found, dict):
            return found
        if "score" not in found:
            raise RewardError(f"verl reward {name!r} returned a dict without 'score': {sorted(found)}")
        numbers = {k: float(v) for k, v in found.items() if k != "score" and isinstance(v, int | float)}
        return Score(found["score"], parts=numbers)

    judge.__doc__ = compute_score.__doc__
    return Reward(name, judge, low, high)


def _chat(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.text} for message in messages]


def _completion(x: RewardInput) -> list[dict[str, str]]:
    return _chat(x.response) or [{"role": "assistant", "content": x.answer}]


def _text(messages: Sequence[Message]) -> str:
    return "\n".join(message.text for message in messages)
