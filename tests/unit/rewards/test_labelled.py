"""Every pair of tests/labelled, judged by the built-in rewards (row 24 of posttrain/RELIABILITY.md)."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from posttrain.types import RewardInput, text_message
from rewards.sdk import load_reward

FOLDER = Path(__file__).parents[2] / "labelled"
TOPICS = sorted(path.stem for path in FOLDER.glob("*.jsonl"))


def rows(topic: str) -> list[dict[str, Any]]:
    lines = (FOLDER / f"{topic}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def episode(row: dict[str, Any]) -> RewardInput:
    return RewardInput(
        prompt=(text_message("user", row["prompt"]),) if "prompt" in row else (),
        response=(text_message("assistant", row["answer"]),),
        answer=row["answer"],
        ground_truth=row.get("ground_truth"),
        columns=row.get("columns", {}),
        truncated=row.get("truncated", False),
    )


def judged(row: dict[str, Any]) -> tuple[bool, bool]:
    """Whether the reward calls the answer right, and whether it gives it its least value."""
    reward = load_reward(row["reward"])
    score = reward(episode(row), **row.get("params", {}))
    value = reward.high if score is None else score.value  # a penalty that does not apply penalises nothing
    return value >= (reward.low + reward.high) / 2 if reward.high > 0 else value > -0.05, value == reward.low


@pytest.mark.slow
@pytest.mark.parametrize("topic", TOPICS)
def test_graders_agree_with_the_labels(topic: str) -> None:
    wrong, right, false_positives, false_negatives, hacked = 0, 0, [], [], []
    for number, row in enumerate(rows(topic), 1):
        positive, least = judged(row)
        right += row["label"]
        wrong += not row["label"]
        if row["kind"].startswith("hack:") and not least:
            hacked.append(number)
        if positive and not row["label"]:
            false_positives.append(number)
        if row["label"] and not positive:
            false_negatives.append(number)
    assert not hacked, f"{topic}.jsonl: hacks that pay, by line"
    assert len(false_positives) <= 0.005 * wrong, f"{topic}.jsonl: wrong answers rewarded, by line"
    assert len(false_negatives) <= 0.05 * right, f"{topic}.jsonl: right answers refused, by line"


def test_the_set_is_what_its_readme_says() -> None:
    counts = Counter(topic for topic in TOPICS for _ in rows(topic))
    assert counts["math"] >= 500
    assert sum(counts.values()) >= 1000
    for topic in TOPICS:
        labels = Counter(row["label"] for row in rows(topic))
        assert min(labels.values()) >= 0.2 * labels.total(), f"{topic}: one label is rare"
        texts = Counter(json.dumps(row, sort_keys=True) for row in rows(topic))
        assert max(texts.values()) == 1, f"{topic}: a pair stands there twice"
