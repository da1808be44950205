"""Errors of a config: every problem of a file at once, each with its place and its remedy."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        where: File and line, or `command line`.
        key: Path of the key, such as `stages[1].learning_rate`; "" where it is the file itself.
        reason: What is wrong.
        remedy: What to do, the nearest right name included; "" where the reason says it.

    Example:
        Problem("my.yaml:14", "stages[1].lerning_rate", "unknown key", "did you mean learning_rate?")
    """

    where: str
    key: str
    reason: str
    remedy: str = ""

    def __str__(self) -> str:
        place = f"{self.where}: {self.key}" if self.key else self.where
        return f"{place}: {self.reason}" + (f"\n    → {self.remedy}" if self.remedy else "")


class ConfigError(ValueError):
    """A config that cannot be used.

    Attributes:
        problems: Everything that is wrong with it.
    """

    def __init__(self, problems: Sequence[Problem]):
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = list(problems)
