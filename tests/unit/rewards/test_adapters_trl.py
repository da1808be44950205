"""Reward functions of the forms that TRL and ms-swift call, unchanged."""

import functools
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from trl.rewards.accuracy_rewards import (
    accuracy_reward,
    get_cosine_scaled_reward,
    reasoning_accuracy_reward,
)
from trl.rewards.format_rewards import think_format_reward
from trl.rewards.other_rewards import get_repetition_penalty_reward, get_soft_overlong_punishment

from posttrain.media.images import save_image
from posttrain.types import Block, Message, RewardInput, text_message
from rewards.adapters import from_trl
from rewards.sdk import Reward, RewardError


def episode(answer: str, ids: tuple[int, ...] = (), gold: Any = "K", **columns: Any) -> RewardInput:
    prompt = (text_message("system", "Be brief."), text_message("user", "Which?"))
    return RewardInput(
        prompt, (text_message("assistant", answer),), answer, gold, columns, completion_ids=ids
    )


def values(judged: Reward, *xs: RewardInput) -> list[float | None]:
    return [score and score.value for score in judged.judge(xs, {})]


def shown(*xs: RewardInput, **options: Any) -> dict[str, Any]:
    """What a function with such parameters is given."""
    found: dict[str, Any] = {}

    def keep(**given: Any) -> list[float]:
        found.update(given)
        return [0.0] * len(xs)

    from_trl(keep, **options).judge(xs, {})
    return found


# TRL's own.


def test_trls_own_format_reward() -> None:
    adapted = from_trl(think_format_reward)
    xs = [episode("<think>\nI look.\n</think>\nK"), episode("K")]
    assert values(adapted, *xs) == think_format_reward(
        [[{"role": "assistant", "content": x.answer}] for x in xs]
    )
    assert adapted.name == "think_format_reward"


IDS = st.lists(st.lists(st.integers(0, 5), max_size=30), min_size=1, max_size=4)


@given(IDS, st.integers(1, 30), st.integers(0, 30), st.integers(1, 4))
def test_trls_own_rewards_of_tokens(ids: list[list[int]], longest: int, soft: int, size: int) -> None:
    xs = [episode("x" * bool(row), tuple(row)) for row in ids]
    punish = get_soft_overlong_punishment(longest, min(soft, longest))
    adapted = from_trl(punish, low=-1.0)
    assert adapted.name == "soft_overlong_punishment_reward"
    assert values(adapted, *xs) == punish(ids)
    repeats = get_repetition_penalty_reward(size, -1.0)
    assert values(from_trl(repeats, low=-1.0), *xs) == repeats(ids)


def test_trls_own_rewards_of_answers() -> None:
    texts = [r"\boxed{\frac{1}{3}}", r"\boxed{\frac{1}{2}}", "none"]
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    golds = [r"\frac{1}{3}"] * 3
    ids = [[1] * 50, [1] * 20, [1]]
    xs = [episode(text, tuple(row), golds[0]) for text, row in zip(texts, ids, strict=True)]
    cosine = get_cosine_scaled_reward(max_len=100)
    assert values(from_trl(cosine, low=-1.0), *xs) == cosine(completions, golds, ids)
    assert values(from_trl(accuracy_reward), *xs) == accuracy_reward(completions, golds)
    assert values(from_trl(reasoning_accuracy_reward), *xs) == reasoning_accuracy_reward(completions, golds)
    first = from_trl(accuracy_reward).judge(xs[:1], {})[0]
    assert first is not None
    assert r"solution: \frac{1}{3}" in first.note  # what it logs beside its values


# What is called.


def plain(completions, **kwargs):  # never asks for more than it takes
    return [float("K" in completion[0]["content"]) for completion in completions]


async def waiting(completions, **kwargs):
    return plain(completions)


class Plain:
    def __call__(self, prompts, completions, **kwargs):
        return plain(completions)

    def method(self, completions):
        return plain(completions)


class AsyncCallable:
    async def __call__(self, completions, **kwargs):
        return plain(completions)


class ORM:
    def __init__(self, args=None, **kwargs):
        self.args = args

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


class AsyncORM:
    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


class Letter(ORM):
    def __call__(self, completions, solution, **kwargs):
        return [float(text.endswith(gold)) for text, gold in zip(completions, solution, strict=True)]


class Requests(ORM):
    def __call__(self, infer_requests, solution, **kwargs):
        said = [request["messages"][-1]["content"] for request in infer_requests]
        return [float(text.endswith(gold)) for text, gold in zip(said, solution, strict=True)]


class OwnName(ORM):
    def __call__(self, predictions, solution, **kwargs):
        return Letter()(predictions, solution)


class Waits(AsyncORM):
    async def __call__(self, completions, **kwargs):
        return [float("K" in text) for text in completions]


FORMS: dict[str, Any] = {
    "plain": plain,
    "lambda": lambda completions: plain(completions),  # noqa: PLW0108
    "partial": functools.partial(lambda completions, letter, **_: plain(completions), letter="K"),
    "callable class": Plain,
    "callable object": Plain(),
    "method": Plain().method,
    "async": waiting,
    "async object": AsyncCallable(),
    "async class": AsyncCallable,
    "async partial": functools.partial(waiting, more=1),
    "a lambda of async": lambda completions, **kwargs: waiting(completions),
    "orm class": Letter,
    "orm object": Letter(args="x"),
    "orm of requests": Requests,
    "orm of its own name": OwnName,
    "async orm class": Waits,
    "async orm object": Waits(),
    "by position": lambda completions, /: plain(completions),
    "in order": lambda *args: plain(args[1]),
    "orm method": Letter().__call__,
    "orm partial": functools.partial(Letter(), level=1),
    "records": lambda reward_inputs: [
        {"overall": float(x["response"].endswith(x["ground_truth"]))} for x in reward_inputs
    ],
}


@pytest.mark.parametrize("name", FORMS)
def test_whatever_can_be_called_is_called(name: str) -> None:
    adapted = from_trl(FORMS[name])
    assert values(adapted, episode("It is K"), episode("It is B")) == [1.0, 0.0]
    assert adapted.is_async == name.startswith("async")
    assert adapted.group


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (plain, "plain"),
        (functools.partial(plain, a=1), "plain"),
        (Letter, "Letter"),
        (Letter(), "Letter"),
        (functools.partial(Letter), "Letter"),
        (Plain().method, "method"),
        (get_soft_overlong_punishment(2, 1), "soft_overlong_punishment_reward"),
    ],
)
def test_a_reward_has_the_name_of_what_it_is_made_of(function: Any, name: str) -> None:
    assert from_trl(function).name == name
    assert from_trl(function, name="mine").name == "mine"


def test_what_cannot_be_called_is_refused() -> None:
    class Overlong(ORM):
        def __init__(self, soft_max_length: int):
            super().__init__()

    with pytest.raises(RewardError, match=r"Overlong.*soft_max_length.*instance"):
        from_trl(Overlong)
    nothing: Any = [1.0]
    with pytest.raises(RewardError, match="cannot be called"):
        from_trl(nothing)


# What is passed.


def test_arguments_are_lists_with_an_entry_an_episode() -> None:
    found = shown(episode("a", (1, 2), level=1, solution="own"), episode("b", (3,)))
    assert found["prompts"][0][1] == {"role": "user", "content": "Which?"}
    assert found["completions"][1] == [{"role": "assistant", "content": "b"}]
    assert (found["answer"], found["ground_truth"]) == (["K", "K"], ["K", "K"])
    assert (found["level"], found["solution"]) == ([1, None], ["own", None])
    assert found["completion_ids"] == found["response_token_ids"] == [[1, 2], [3]]
    assert found["messages"][1] == [*found["prompts"][1], *found["completions"][1]]
    assert found["infer_requests"] == [{"messages": messages} for messages in found["messages"]]


def test_texts_are_the_models_words_alone() -> None:
    turns = (text_message("assistant", "I look."), text_message("tool", "42"), text_message("assistant", "K"))
    x = RewardInput((text_message("user", "Which?"),), turns, "K", "K")
    found = shown(x, chat=False)
    assert found["completions"] == ["I look.\nK"]
    assert found["prompts"] == ["Which?"]
    assert [message["role"] for message in shown(x)["completions"][0]] == ["assistant", "tool", "assistant"]
    assert shown(RewardInput((), (), "K"), chat=False)["completions"] == ["K"]


def test_images_are_those_of_the_prompt(tmp_path: Path) -> None:
    ref = save_image(Image.new("RGB", (40, 30), "red"), tmp_path)
    prompt = (Message("user", (Block("image", image=ref), Block("text", text="What?"))),)
    x = RewardInput(prompt, (text_message("assistant", "red"),), "red", "red")

    def wide(completions: Any, images: Any, **kwargs: Any) -> list[float]:
        return [float(shown[0].size == (40, 30)) for shown in images]

    assert values(from_trl(wide), x) == [1.0]
    assert "images" not in shown(x)  # pixels are read for functions that name them

    def listed(completions: Any, images: Any) -> list[float]:
        return [float(row == ["a.png"]) for row in images]

    assert values(from_trl(listed), RewardInput(prompt, (), "red", "red", {"images": ["a.png"]})) == [1.0]


@pytest.mark.parametrize("named", [True, False])
def test_what_a_function_logs_is_kept(named: bool) -> None:
    def logging(completions: Any, log_extra: Any, log_metric: Any, **kwargs: Any) -> list[float | None]:
        log_extra("parsed", ["K", None])
        log_extra("iou", np.array([0.5, 0.25]))
        log_metric("share", torch.tensor(0.75))
        return [1.0, None]

    def hidden(completions: Any, **kwargs: Any) -> list[float | None]:
        return logging(completions, **kwargs)

    scores = from_trl(logging if named else hidden).judge([episode("a"), episode("b")], {})
    assert scores[1] is None
    assert scores[0] is not None
    assert scores[0].parts == {"iou": 0.5, "share": 0.75}
    assert scores[0].note == "parsed: K"


@pytest.mark.parametrize("name", ["completion_ids", "response_token_ids"])
def test_tokens_that_nobody_knows_are_told(name: str) -> None:
    functions: dict[str, Callable[..., Any]] = {
        "completion_ids": lambda completion_ids: [len(ids) / 10 for ids in completion_ids],
        "response_token_ids": lambda response_token_ids, **_: [len(ids) / 10 for ids in response_token_ids],
    }
    adapted = from_trl(functions[name], name="short")
    with pytest.raises(RewardError, match=rf"'short' asks for '{name}'"):
        values(adapted, episode("a", (1,)), episode("b"))
    assert values(adapted, episode("a", (1,)), episode("")) == [0.1, 0.0]  # what is empty has no tokens


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda completions, trainer_state: [1.0], r"'trainer_state'.*columns: level"),
        (lambda completions, target: [1.0], r"'target'.*columns: level"),
        (lambda completions, solution: [1.0], r"'solution'.*ground_truth"),
        (lambda completions, answer, **kwargs: [1.0], r"'answer'.*ground_truth"),
        (lambda completions, **kwargs: kwargs["ground_truth"], "ground_truth"),
    ],
)
def test_arguments_that_do_not_exist_are_told(function: Any, reason: str) -> None:
    with pytest.raises((RewardError, KeyError), match=reason):
        values(from_trl(function, name="f"), episode("a", gold=None, level=3))


def test_arguments_with_a_default_may_be_missing() -> None:
    adapted = from_trl(lambda completions, trainer_state=None, target=1, **kwargs: [float(target)])
    assert values(adapted, episode("a")) == [1.0]


def test_golds_are_found_where_verls_rows_have_them() -> None:
    x = episode("It is K", gold=None, reward_model={"ground_truth": "K"})
    assert values(from_trl(Letter), x) == [1.0]


# What comes back.


@pytest.mark.parametrize(
    "found",
    [
        [1, 0.5],
        (1.0, 0.5),
        np.array([1, 0.5]),
        np.array([[1], [0.5]], dtype=np.float32),
        [np.float32(1), np.float16(0.5)],
        [np.bool_(True), Fraction(1, 2)],
        torch.tensor([1.0, 0.5]),
        torch.tensor([[1.0], [0.5]], dtype=torch.bfloat16),
        [torch.tensor(1.0), torch.tensor([0.5])],
        [True, {"score": 0.5, "acc": 1}],
        {"a": 1.0, "b": 0.5}.values(),
    ],
)
def test_values_of_every_kind(found: Any) -> None:
    assert values(from_trl(lambda completions: found), episode("a"), episode("b")) == [1.0, 0.5]
    given = (each for each in found)
    assert values(from_trl(lambda completions: given), episode("a"), episode("b")) == [1.0, 0.5]


@pytest.mark.parametrize(
    "found", [1.0, None, [1.0], [1.0] * 3, "ab", {"a": 1, "b": 2}, iter(int, 1), np.array(1.0)]
)
def test_one_value_for_each_episode(found: Any) -> None:
    with pytest.raises(RewardError, match="for 2 episodes"):
        values(from_trl(lambda completions: found, name="f"), episode("a"), episode("b"))
