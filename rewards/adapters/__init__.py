"""Rewards written for other toolkits, used here unchanged: `from_trl` and `from_verl`."""

from rewards.adapters.trl import from_trl
from rewards.adapters.verl import from_verl

__all__ = ["from_trl", "from_verl"]
