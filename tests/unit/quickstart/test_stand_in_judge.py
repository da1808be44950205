"""A small model that stands in for a judge: real verdicts over real HTTP, by the log-probs that it gives."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

from posttrain.files.tally import Tally
from posttrain.quickstart import stand_in_judge
from posttrain.types import RewardInput, text_message
from rewards.budget import Budget
from rewards.builtin.judge import judge, judge_pairwise
from rewards.judge.client import URL_VARIABLE

SETTINGS = {"model": "stand-in", "cache_dir": None, "rubric": "preference"}
QUESTION = "Which letter is on the red marker?"
ANSWERS = ("K", "red red red", "Where is the red marker?")


@pytest.fixture(scope="module")
def url(tiny_checkpoint: Path) -> Iterator[str]:
    server = stand_in_judge.start(tiny_checkpoint)
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


def likelihood(checkpoint: Path, answer: str) -> float:
    """The same by transformers' own loss."""
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
    asked = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    before, after = (tokenizer(text)["input_ids"] for text in (asked, f"{answer}<|im_end|>"))
    ids = torch.tensor([before + after])
    labels = torch.tensor([[-100] * len(before) + after])
    with torch.no_grad():
        return math.exp(-model(input_ids=ids, labels=labels).loss.item())


def episode(answer: str) -> RewardInput:
    return RewardInput((text_message("user", QUESTION),), (text_message("assistant", answer),), answer)


def test_verdicts_follow_the_model(
    url: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(URL_VARIABLE, url)
    expected = [likelihood(tiny_checkpoint, answer) for answer in ANSWERS]
    counted = Budget(ledger=tmp_path / "ledger.json")
    for answer, share in zip(ANSWERS, expected, strict=True):
        score = judge(episode(answer), **SETTINGS, budget=counted.params())
        assert score is not None
        assert set(score.parts.values()) == {round(10 * share) / 10}
    sums = Tally(counted.ledger).read()
    assert sums["calls"] == 3
    assert sums["input_tokens"] > 3 * 10
    scores = judge_pairwise.judge([episode(answer) for answer in ANSWERS], SETTINGS)

    def beats(a: float, b: float) -> float:
        return 0.5 if abs(a - b) < stand_in_judge.TIE else float(a > b)

    for index, score in enumerate(scores):
        assert score is not None
        others = [other for place, other in enumerate(expected) if place != index]
        assert score.value == sum(beats(expected[index], other) for other in others) / 2


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"{}", b'{"messages": []}', b'{"messages": 1}', b"\xff", b"x" * (2 << 20)]
)
def test_what_is_no_question_is_refused(body: bytes, url: str) -> None:
    reply = httpx.post(f"{url}/chat/completions", content=body, trust_env=False)
    assert reply.status_code == 400
    assert json.loads(reply.text)["error"]
