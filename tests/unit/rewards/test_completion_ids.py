"""The token ids that the model sampled, on their way from a rollout to a reward."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.reward_spec import RewardSpec
from posttrain.rollout.worker import reward_input
from posttrain.types import RewardInput, Sample, Trajectory, text_message
from rewards import wire
from rewards.kit.check import check_reward
from rewards.kit.samples import SampleError, read_samples, with_answer
from rewards.manager import RewardManager

SAMPLE = Sample("s", (), ground_truth="K")


@given(st.lists(st.tuples(st.integers(0, 200_000), st.booleans()), max_size=50))
def test_a_rollout_gives_the_sampled_ids_without_prompt_and_observations(
    tokens: list[tuple[int, bool]],
) -> None:
    trajectory = Trajectory("s", "t", 0, 0, [token for token, _ in tokens], [own for _, own in tokens])
    assert reward_input(trajectory, SAMPLE).completion_ids == tuple(token for token, own in tokens if own)


@given(st.lists(st.integers(0, 2**40), max_size=50).map(tuple))
def test_the_wire_carries_them(ids: tuple[int, ...]) -> None:
    x = RewardInput((), (text_message("assistant", "K"),), "K", "K", completion_ids=ids)
    body = wire.score_request([RewardSpec("math")], [x], None)
    assert wire.read_score_request(body)[1] == [x]


def test_a_request_without_them_is_valid() -> None:
    row = {"prompt": [], "response": [], "answer": "K"}
    assert wire.input_from_json(row, "inputs[0]").completion_ids == ()


@pytest.mark.parametrize("ids", [None, 3, "12", [1.0], [True], [-1], ["1"], [None], [[1]], {"1": 2}])
def test_what_are_no_token_ids_is_refused(ids: Any) -> None:
    row = {"prompt": [], "response": [], "answer": "K", "completion_ids": ids}
    with pytest.raises(wire.WireError, match=r"inputs\[0\]\.completion_ids"):
        wire.input_from_json(row, "inputs[0]")


PLUGIN = """
from rewards import reward

@reward("brief")
def brief(x, limit=8):
    if x.answer.strip() and not x.completion_ids:
        raise ValueError("brief counts tokens")
    return float(0 < len(x.completion_ids) <= limit)
"""


@pytest.fixture
def rows(tmp_path: Path) -> Callable[[str], Path]:
    def write(ids: str) -> Path:
        (tmp_path / "mine.py").write_text(PLUGIN)
        path = tmp_path / "rows.jsonl"
        path.write_text(f'{{"prompt": "Which?", "ground_truth": "K", "answer": "It is K"{ids}}}\n')
        return path

    return write


def test_a_file_of_answers_may_have_them(rows: Callable[[str], Path]) -> None:
    (sample,) = read_samples(rows(', "completion_ids": [5, 6, 7]'))
    assert sample.x.completion_ids == (5, 6, 7)
    assert "completion_ids" not in sample.x.columns
    (result,) = RewardManager([RewardSpec("mine.py:brief")], rows("").parent).score([sample.x])
    assert result.total == 1.0
    (bare,) = read_samples(rows(""))
    assert bare.x.completion_ids == ()
    with pytest.raises(SampleError, match=r"rows\.jsonl:1: completion_ids"):
        read_samples(rows(', "completion_ids": "567"'))


def test_a_reward_of_tokens_can_be_checked(rows: Callable[[str], Path]) -> None:
    path = rows(', "completion_ids": [5, 6, 7]')
    assert check_reward("mine.py:brief", read_samples(path), {}, path.parent).passed
    path = rows("")
    report = check_reward("mine.py:brief", read_samples(path), {}, path.parent)
    assert any("brief counts tokens" in line for finding in report.findings for line in finding.failures)


def test_another_answer_has_other_ids() -> None:
    x = RewardInput((), (text_message("assistant", "K"),), "K", "K", completion_ids=(5,))
    assert with_answer(x, " K\n").completion_ids == (5,)
    assert with_answer(x, "").completion_ids == ()
    assert with_answer(x, "né").completion_ids == tuple("né".encode())
    unknown = RewardInput((), (text_message("assistant", "K"),), "K", "K")
    assert with_answer(unknown, "B").completion_ids == ()
