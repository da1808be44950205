"""A figure with its interval, as a row of `evaluation.jsonl` has it."""

from dataclasses import dataclass

from posttrain.files.strict_json import Json, JsonObject
from posttrain.run.json_fields import integer, mapping, number


@dataclass(frozen=True)
class Estimate:
    """A share with its 95 % interval.

    Attributes:
        value: The share.
        low, high: The interval.
        n: Number of prompts that it is of.
    """

    value: float
    low: float
    high: float
    n: int

    def to_json(self) -> JsonObject:
        """Return what stands in the file."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


def estimates_from_json(value: Json) -> dict[str, Estimate]:
    """Read estimates by name; one that lacks a figure is absent."""
    found: dict[str, Estimate] = {}
    for name, item in mapping(value).items():
        read = mapping(item)
        share, low, high, n = (number(read.get(key)) for key in ("value", "low", "high", "n"))
        if share is not None and low is not None and high is not None and n is not None:
            found[name] = Estimate(share, low, high, integer(n) or 0)
    return found


def estimates_to_json(estimates: dict[str, Estimate]) -> JsonObject:
    """Return what `estimates_from_json` reads."""
    return {name: estimate.to_json() for name, estimate in estimates.items()}
