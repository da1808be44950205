"""Every built-in reward gives the same verdicts in process and through the server."""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from posttrain.plugins import declared
from posttrain.types import Block, ImageRef, Message, RewardInput, ToolCall, text_message
from rewards.manager import RewardManager, RewardSpec
from rewards.sdk import load_reward
from rewards.serving.client import RewardClient
from rewards.serving.launch import RewardServer, start_server

LABELLED = Path(__file__).parents[1] / "labelled"
#: Those that need a service or an optional package are tested with theirs.
ELSEWHERE = {"reasoning_gym", *(name for name in declared("posttrain.rewards") if "judge" in name)}
ELSEWHERE |= {"multi_turn_reasoning"}
RULES = sorted(set(declared("posttrain.rewards")) - ELSEWHERE)
A_REWARD = 25

Cases = list[tuple[RewardSpec, RewardInput]]


def cases() -> dict[str, Cases]:
    """Some labelled pairs of each reward, spread over its file."""
    found: dict[str, Cases] = defaultdict(list)
    for path in sorted(LABELLED.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            prompt = (text_message("user", row["prompt"]),) if "prompt" in row else ()
            response = (text_message("assistant", row["answer"]),)
            columns: dict[str, Any] = row.get("columns", {})
            x = RewardInput(prompt, response, row["answer"], row.get("ground_truth"), columns)
            found[row["reward"]].append((RewardSpec(row["reward"], params=row.get("params", {})), x))
    calls = [ToolCall("image_zoom_in_tool", {"n": i}, True, images=i % 2) for i in range(4)]
    found["tool_calls"] = [
        (RewardSpec("tool_calls"), RewardInput((), (), "K", None, {"target_tool_calls": 2}, tuple(calls[:i])))
        for i in range(5)
    ]
    found["answer_accuracy"] = [
        (RewardSpec("answer_accuracy"), RewardInput((), (), answer, "K"))
        for answer in ("K", "It is K", "X", "")
    ]
    look = (ToolCall("image_zoom_in_tool", {"label": "red"}, True, images=1),)
    crop = Message("tool", (Block("image", image=ImageRef("/crop.png")),))
    found["turn_readings"] = [
        (
            RewardSpec("turn_readings", params={"choices": list("AHKT")}),
            RewardInput(
                (), (crop, text_message("assistant", said)), said, None, {"readings": {"red": "K"}}, look
            ),
        )
        for said in ("K", "T", "AHKT", "")
    ]
    return {name: rows[:: max(1, len(rows) // A_REWARD)] for name, rows in found.items()}


CASES = cases()


@pytest.fixture(scope="module")
def server() -> Iterator[RewardServer]:
    with start_server(RULES) as server:
        yield server


def test_no_reward_is_without_cases() -> None:
    shared = {"cer", "wer", "truncation", "overlong"}  # judged by the code of others that have cases
    assert set(RULES) - shared <= set(CASES)


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_server_says_what_the_process_says(server: RewardServer, name: str) -> None:
    client = RewardClient(server.url, server.token)
    by_spec: dict[str, Cases] = defaultdict(list)
    for spec, x in CASES[name]:
        by_spec[json.dumps(spec.params, sort_keys=True)].append((spec, x))
    for rows in by_spec.values():
        inputs = [x for _, x in rows]
        assert client.score([rows[0][0]], inputs) == RewardManager([rows[0][0]]).score(inputs)
    client.close()
    assert load_reward(name).summary.endswith(".")
