"""How far a judge and a rule agree: counts of episodes, and Cohen's kappa of them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from posttrain.run.metric_names import AGREEMENT

#: Between the names of a judge and a rule.
VERSUS = " vs "


@dataclass(frozen=True)
class Confusion:
    """Episodes by who calls them good.

    Attributes:
        both, neither: Judge and rule alike.
        judge_only: The judge alone.
        rule_only: The rule alone.
    """

    both: float = 0.0
    judge_only: float = 0.0
    rule_only: float = 0.0
    neither: float = 0.0

    @classmethod
    def of(cls, calls: Iterable[tuple[bool, bool]]) -> "Confusion":
        """Count what judge and rule say, each of the same episode."""
        called = list(calls)
        return cls(*(float(called.count(kind)) for kind in _KINDS))

    @property
    def total(self) -> float:
        """Number of episodes."""
        return self.both + self.judge_only + self.rule_only + self.neither

    @property
    def agreement(self) -> float | None:
        """Share on which they agree; None of no episodes."""
        return (self.both + self.neither) / self.total if self.total else None

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa: 0 is what chance gives, 1 is perfect; None where both always say the same."""
        if not self.total:
            return None
        judge = (self.both + self.judge_only) / self.total
        rule = (self.both + self.rule_only) / self.total
        by_chance = judge * rule + (1 - judge) * (1 - rule)
        agreed = (self.both + self.neither) / self.total
        return None if by_chance >= 1 else (agreed - by_chance) / (1 - by_chance)

    def __add__(self, other: "Confusion") -> "Confusion":
        return Confusion(*(getattr(self, name) + getattr(other, name) for name in COUNTS))


#: Names of the counts.
COUNTS = ("both", "judge_only", "rule_only", "neither")
#: What judge and rule say in each of them.
_KINDS = ((True, True), (True, False), (False, True), (False, False))


def agreement_figures(
    task: str, judge: str, rule: str, confusion: Confusion, correlation: float | None
) -> dict[str, float]:
    """Return the figures of a step for `metrics.jsonl`."""
    told = {name: getattr(confusion, name) for name in COUNTS}
    told |= {"kappa": confusion.kappa, "correlation": correlation}
    pair = f"{judge}{VERSUS}{rule}"
    return {f"{AGREEMENT}{task}/{name}/{pair}": value for name, value in told.items() if value is not None}


def read_figures(figures: Mapping[str, float | None]) -> dict[tuple[str, str, str], dict[str, float]]:
    """Return the figures of a step by task, judge and rule; what is not of that form is passed over."""
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    for name, value in figures.items():
        task, _, rest = name.removeprefix(AGREEMENT).partition("/")
        what, _, pair = rest.partition("/")
        judge, versus, rule = pair.partition(VERSUS)
        if name.startswith(AGREEMENT) and versus and value is not None:
            found.setdefault((task, judge, rule), {})[what] = value
    return found
