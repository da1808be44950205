"""Prompts that provoke bad habits: good answers lose nothing, bad ones are what their penalty is for."""

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.messages import message_from_json
from posttrain.quickstart import instruction_texts
from posttrain.types import RewardInput
from rewards.sdk import load_reward

#: By kind, what good answers earn in full, and what bad ones lose.
OUTCOMES = {
    "follow": "instruction_following",
    "json": "structured_output",
    "mixing": "instruction_following",
    "repeating": "instruction_following",
    "kind": "instruction_following",
}
PENALTIES = ("language_mixing", "language_match", "repetition")
LOSES = {
    "follow": "instruction_following",
    "json": "json_valid",
    "mixing": "language_mixing",
    "repeating": "repetition",
    "kind": "instruction_following",
}


def rows(folder: Path, **params: Any) -> list[dict[str, Any]]:
    folder.mkdir()
    instruction_texts.write(folder, **params)
    return [json.loads(line) for line in (folder / "data.jsonl").read_text(encoding="utf-8").splitlines()]


def value(reward: str, row: dict[str, Any]) -> float:
    asked, answered = (message_from_json(turn) for turn in row["messages"])
    columns = {key: held for key, held in row.items() if key not in ("id", "messages", "ground_truth")}
    x = RewardInput((asked,), (answered,), answered.text, row.get("ground_truth"), columns)
    score = load_reward(reward)(x)
    assert score is not None
    return score.value


@pytest.mark.parametrize("kind", OUTCOMES)
def test_good_answers_lose_nothing_and_bad_ones_do(kind: Any, tmp_path: Path) -> None:
    good = rows(tmp_path / "good", kind=kind, split="train", count=60, answered=True)
    bad = rows(tmp_path / "bad", kind=kind, split="train", count=60, answered=True, flawed=1.0)
    assert [row["messages"][0] for row in good] == [row["messages"][0] for row in bad]
    for row in good:
        assert value(OUTCOMES[kind], row) == 1
        assert not any(value(name, row) for name in PENALTIES)
    full = 1 if load_reward(LOSES[kind]).high == 1 else 0
    assert all(value(LOSES[kind], row) <= full - 0.1 for row in bad)
    half = rows(tmp_path / "half", kind=kind, split="train", count=200, answered=True, flawed=0.5)
    assert 70 <= sum(value(LOSES[kind], row) < full - 0.05 for row in half) <= 130


@pytest.mark.parametrize("kind", OUTCOMES)
def test_prompts_differ_and_splits_do_not_meet(kind: Any, tmp_path: Path) -> None:
    def texts(name: str, **params: Any) -> list[str]:
        found = rows(tmp_path / name, kind=kind, **params)
        assert all(len(row["messages"]) == 1 for row in found)
        return [row["messages"][0]["content"] for row in found]

    train, held_out = texts("a", split="train", count=120), texts("b", split="test", count=20, seed=5)
    assert len({*train}) == 120
    assert not {*train, *texts("c", split="train", count=120, seed=5)} & {*held_out}
    assert train == texts("d", split="train", count=120)
    with pytest.raises(ValueError, match=r"count 200: there are \d+ prompts"):
        texts("e", split="test", count=200)


@pytest.mark.parametrize("wrong", [{"kind": "rude"}, {"split": "sft"}, {"flawed": 0.5}, {"flawed": 2.0}])
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        instruction_texts.write(tmp_path, **({"kind": "json", "split": "train", "count": 1} | wrong))
