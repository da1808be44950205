"""Rewards that can be tested, attacked and served like any other software; no torch is needed.

Write one with `@reward`, combine several with `rewards.manager.RewardManager`, serve them with
`posttrain rewards serve`. README.md shows a first plugin.
"""

from posttrain.plugins import declared
from posttrain.types import RewardInput, Score
from rewards.sdk import Reward, reward

__all__ = ["Reward", "RewardInput", "Score", "available", "reward"]


def available() -> list[str]:
    """Names of the rewards that are installed, the built-in ones among them; loads none of them."""
    return list(declared("posttrain.rewards"))
