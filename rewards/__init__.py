"""Rewards that can be tested, attacked and served like any other software; no torch is needed.

Write one with `@reward` (or `@group_reward`), score episodes with several in `RewardManager`, serve them with
`posttrain rewards serve`. README.md shows a first plugin.
"""

from posttrain.plugins import declared
from posttrain.reward_spec import RewardSpec
from posttrain.types import RewardInput, Score
from rewards.adapters import from_trl, from_verl
from rewards.manager import RewardManager
from rewards.sdk import Reward, group_reward, reward

__all__ = [
    "Reward",
    "RewardInput",
    "RewardManager",
    "RewardSpec",
    "Score",
    "available",
    "from_trl",
    "from_verl",
    "group_reward",
    "reward",
]


def available() -> list[str]:
    """List the names of the rewards that are installed, the built-in ones among them; load none of them."""
    return list(declared("posttrain.rewards"))
