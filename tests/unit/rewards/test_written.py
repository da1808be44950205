"""What the new rewards say of how models write right answers, which `posttrain validate` tries."""

from typing import Any

import pytest

from posttrain.types import RewardInput
from rewards.sdk import load_reward

GOLDS: list[tuple[str, Any]] = [
    ("vqa_accuracy", ["sports", *["tennis"] * 9]),
    ("mmmu_open", ["12.35", "12.4"]),
    ("relaxed_accuracy", "12%"),
    ("mean_relative_accuracy", 3.2),
    ("token_f1", ["the red car"]),
    ("squad_exact_match", "北京大学"),
    ("rouge_l", ["a man rides a horse"]),
    ("ordering", ["door", "old bed", "lamp"]),
    ("temporal_iou", [3.2, 8.5]),
    ("temporal_iou", [[1, 2], ["0:05", "0:08"]]),
    ("temporal_iou", []),
]


@pytest.mark.parametrize(("name", "gold"), GOLDS)
def test_what_models_write_earns_full_marks(name: str, gold: Any) -> None:
    reward = load_reward(name)
    assert reward.written is not None
    answers = reward.written(gold)
    assert answers
    for answer in answers:
        score = reward(RewardInput((), (), answer, ground_truth=gold))
        assert score is not None
        assert score.value == 1, answer


@pytest.mark.parametrize(
    ("name", "gold"),
    [
        ("vqa_accuracy", ["a cup", "mug", "cup", "glass", "beaker", "jar"]),
        ("detection_ap", [1, 2, 3, 4]),
        ("mask_iou", [1, 2, 3, 2, 3, 4]),
        ("gui_action", [1, 2, 3, 4]),
    ],
)
def test_where_nobody_can_say_nothing_is_tried(name: str, gold: Any) -> None:
    reward = load_reward(name)
    assert reward.written is not None
    assert reward.written(gold) is None
