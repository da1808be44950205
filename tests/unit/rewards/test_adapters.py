"""TRL's and verl's reward functions, unchanged."""

from typing import Any

import pytest
from trl.rewards.format_rewards import think_format_reward
from trl.rewards.other_rewards import get_soft_overlong_punishment

from posttrain.types import RewardInput, text_message
from rewards.adapters import from_trl, from_verl
from rewards.manager import RewardManager, RewardSpec
from rewards.sdk import RewardError


def episode(answer: str, **columns: Any) -> RewardInput:
    prompt = (text_message("system", "Be brief."), text_message("user", "Which?"))
    return RewardInput(prompt, (text_message("assistant", answer),), answer, "K", columns)


def test_trl_s_own_reward() -> None:
    adapted = from_trl(think_format_reward)
    xs = [episode("<think>\nI look.\n</think>\nK"), episode("K")]
    assert [score and score.value for score in adapted.judge(xs, {})] == think_format_reward(
        [[{"role": "assistant", "content": x.answer}] for x in xs]
    )
    assert adapted.name == "think_format_reward"


def test_trl_arguments_are_lists_with_an_entry_an_episode() -> None:
    seen: dict[str, Any] = {}

    def judge(prompts: Any, completions: Any, answer: Any, level: Any, **rest: Any) -> list[float | None]:
        """Collects."""
        seen.update(prompts=prompts, completions=completions, answer=answer, level=level, **rest)
        return [1.0, None]

    adapted = from_trl(judge)
    scores = adapted.judge([episode("a", level=1, solution="own"), episode("b")], {})
    assert [score and score.value for score in scores] == [1.0, None]
    assert seen["prompts"][0][1] == {"role": "user", "content": "Which?"}
    assert seen["completions"][1] == [{"role": "assistant", "content": "b"}]
    assert (seen["answer"], seen["level"], seen["solution"]) == (["K", "K"], [1, None], ["own", None])
    assert adapted.summary == "Collects."


def test_trl_texts_and_async() -> None:
    async def length(completions: list[str]) -> list[float]:
        return [1.0 / len(completion) for completion in completions]

    adapted = from_trl(length, chat=False)
    assert adapted.is_async
    assert [score and score.value for score in adapted.judge([episode("ab"), episode("abcd")], {})] == [
        0.5,
        0.25,
    ]


def test_trl_arguments_that_do_not_exist_are_told() -> None:
    punish = from_trl(get_soft_overlong_punishment(10, 5), low=-1.0)
    with pytest.raises(RewardError, match="completion_ids"):
        punish.judge([episode("a")], {})


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> Any:
    """Of verl's form."""
    if data_source == "dict":
        return {"score": float(ground_truth in solution_str), "acc": True, "length": 3, "pred": solution_str}
    return float(extra_info["index"] == 3)


def test_verl() -> None:
    adapted = from_verl(compute_score)
    score = adapted(episode("It is K", data_source="dict"))
    assert score is not None
    assert (score.value, score.parts) == (1.0, {"acc": 1.0, "length": 3.0})
    for columns in ({"index": 3}, {"extra_info": {"index": 3}}):
        found = adapted(episode("", **columns))
        assert found is not None
        assert found.value == 1.0
    no_score = from_verl(lambda **_: {"acc": 1}, name="partial")
    with pytest.raises(RewardError, match="without 'score'"):
        no_score(episode(""))


def test_adapted_rewards_are_found_by_reference(tmp_path: Any) -> None:
    (tmp_path / "mine.py").write_text(
        "from rewards import from_trl, from_verl\n"
        "def f(completions, **kwargs):\n    return [float(len(c[0]['content'])) / 10 for c in completions]\n"
        "def compute_score(data_source, solution_str, ground_truth, extra_info):\n    return 0.25\n"
        "short = from_trl(f)\nquarter = from_verl(compute_score)\n"
    )
    specs = [RewardSpec("mine.py:short"), RewardSpec("mine.py:quarter", 2.0)]
    results = RewardManager(specs, tmp_path).score([episode("ab"), episode("abc")], groups=[0, 0])
    assert [result.total for result in results] == pytest.approx([0.7, 0.8])
