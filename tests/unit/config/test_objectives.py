"""Settings of objectives that make no sense together are refused, and the message says what to write."""

from typing import Any

import pytest

from posttrain.config import ConfigError, Document, build_run


def run(rl: dict[str, Any]) -> Any:
    stage: dict[str, Any] = {
        "stage": "rl",
        "max_steps": 4,
        "tasks": [{"data": "markers_zoom", "rewards": ["answer_accuracy"]}],
    }
    model = {"name_or_path": "Qwen/Qwen3-VL-2B-Instruct"}
    return build_run(Document({"name": "test", "model": model, "stages": [stage | rl]}, "run.yaml"))


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (
            {"name": "grpo", "kl": {"coefficient": 0.1, "estimator": "k1"}},
            "kl.estimator: the expected gradient",
        ),
        (
            {"name": "sapo", "kl": {"coefficient": 0.1, "estimator": "k3", "place": "reward"}},
            "kl.estimator: near the reference the expected gradient of k3 in the reward vanishes",
        ),
        ({"name": "sapo", "baseline": "leave_one_out"}, "baseline: divided by the group's deviation"),
        ({"name": "grpo", "dual_clip": 1.1}, "dual_clip: 1.1 is within the bounds of every other token"),
        ({"name": "gspo", "loss_normalization": "token"}, "loss_normalization: gspo weighs sequences"),
        ({"name": "cispo", "clip_low": 0.2}, "clip_low: unknown key"),
        ({"name": "sapo", "dual_clip": 3}, "dual_clip: unknown key"),
    ],
)
def test_what_makes_no_sense_is_refused(algorithm: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run({"algorithm": algorithm})
    assert message in str(caught.value)


def test_a_reference_is_counted_in_the_memory_unless_adapters_are_switched_off() -> None:
    kl = {"algorithm": {"name": "grpo", "kl": {"coefficient": 0.01}}}
    assert run(kl).stages[0].load().reference
    assert not run({}).stages[0].load().reference
    assert not run(kl | {"lora": {"rank": 8}}).stages[0].load().reference


def test_the_longest_response_is_of_all_turns() -> None:
    rollout = {"max_new_tokens": 100, "max_length": 1000}
    assert run({"rollout": rollout}).stages[0].longest_response == 100
    task = {"data": "markers_zoom", "tools": ["image_zoom_in_tool"], "rewards": ["answer_accuracy"]}
    several = run({"rollout": rollout, "tasks": [task | {"max_turns": 4}]})
    assert several.stages[0].longest_response == 400
    many = run({"rollout": rollout, "tasks": [task | {"max_turns": 40}]})
    assert many.stages[0].longest_response == 1000
