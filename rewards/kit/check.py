"""The conformance kit: does a reward keep the contract that training relies on?"""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from posttrain.reward_spec import RewardSpec
from posttrain.types import RewardInput, RewardResult
from rewards.kit.attacks import ATTACKS
from rewards.kit.samples import KitSample, groups_of, with_answer
from rewards.workers.scorer import Scorer

#: Samples on which each attack is tried.
ATTACKED = 3


@dataclass
class Finding:
    """What one check found.

    Attributes:
        check: What was asked.
        failures: A line for each sample that failed; none means that it passed.
        note: Said of a check that passed, or that was not made.
        made: Whether it was made: on some sample that has a value, for a reward to which it applies.
    """

    check: str
    failures: list[str] = field(default_factory=list)
    note: str = ""
    made: bool = True

    @property
    def mark(self) -> str:
        """What stands before it: passed, failed, or not made."""
        return "✗" if self.failures else "✓" if self.made else "–"


@dataclass
class Report:
    """Every finding, and the samples with their own answers' verdicts."""

    findings: list[Finding]
    scored: list[tuple[KitSample, RewardResult]]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not any(finding.failures for finding in self.findings)


class _Trial:
    """One reward on one set of samples."""

    def __init__(self, scorer: Scorer, spec: RewardSpec, samples: Sequence[KitSample]):
        self.scorer = scorer
        self.spec = spec
        self.samples = samples
        said = next(loaded for loaded in scorer.rewards if loaded["name"] == spec.name)
        self.low, self.high = said["low"], said["high"]
        self.group = said["group"]
        self.gold = self.score([sample.x for sample in samples])

    def score(self, inputs: Sequence[RewardInput], groups: Sequence[int] | None = None) -> list[RewardResult]:
        """Score episodes, in order; a group reward's groups are by default those of one prompt."""
        chosen = (groups_of(inputs) if groups is None else groups) if self.group else None
        return self.scorer.submit([self.spec], inputs, chosen).results()

    def value(self, result: RewardResult) -> float | None:
        """Return the reward's value; None where it failed or does not apply."""
        return result.values.get(self.spec.name)

    def applies(self) -> Iterator[tuple[KitSample, float]]:
        """Yield the samples that the reward has a value for."""
        for sample, result in zip(self.samples, self.gold, strict=True):
            if (value := self.value(result)) is not None:
                yield sample, value


def check_reward(
    reference: str,
    samples: Sequence[KitSample],
    params: Mapping[str, object],
    base_dir: Path | None = None,
    deadline_s: float = 10.0,
) -> Report:
    """Try a reward on samples whose answers are right.

    Args:
        reference: The reward.
        samples: With right answers.
        params: The reward's parameters.
        base_dir: Folder against which file references are resolved.
        deadline_s: Seconds that one call may take where the reward declares no limit of its own.

    Raises:
        PluginError: If the reference leads to no reward.
        RewardError: If the reward does not take the parameters.
    """
    with Scorer([reference], deadline_s=deadline_s, base_dir=base_dir) as scorer:
        trial = _Trial(scorer, RewardSpec(reference, params=params), samples)
        checks: list[Callable[[_Trial], Finding]] = [
            _answers,
            _gold,
            _empty,
            _repeat,
            _order,
            _space,
            _attacks,
        ]
        return Report([check(trial) for check in checks], list(zip(samples, trial.gold, strict=True)))


def _answers(trial: _Trial) -> Finding:
    """Check for errors, which cover what is not finite, out of range, or late."""
    failures = [
        f"{sample.id}: {reason}"
        for sample, result in zip(trial.samples, trial.gold, strict=True)
        for reason in _errors(result)
    ]
    if not failures and not any(True for _ in trial.applies()):
        failures = [f"the reward applies to none of the {len(trial.samples)} samples: it returned None"]
    return Finding("finite, in range and within its deadline", failures)


def _gold(trial: _Trial) -> Finding:
    low = [(sample, value) for sample, value in trial.applies() if value < trial.high]
    if trial.group and low:  # where episodes are compared, a right one may lose to others, but not alone
        alone = trial.score([sample.x for sample, _ in low], range(len(low)))
        low = [pair for pair, result in zip(low, alone, strict=True) if trial.value(result) != trial.high]
    failures = [f"{sample.id}: scores {value:g}" for sample, value in low]
    return _on_values(trial, Finding(f"right answers get full marks ({trial.high:g})", failures))


def _empty(trial: _Trial) -> Finding:
    finding = Finding(f"an empty answer gets the least ({trial.low:g})")
    if trial.high <= 0:
        return replace(finding, note="does not apply to a penalty", made=False)
    for sample, result in zip(trial.samples, _without_answers(trial), strict=True):
        value = trial.value(result)
        finding.failures += [f"{sample.id}: an empty answer fails: {reason}" for reason in _errors(result)]
        if value is not None and value > trial.low and sample.x.ground_truth != "":
            finding.failures.append(f"{sample.id}: an empty answer scores {value:g}")
    return _on_values(trial, finding)


def _without_answers(trial: _Trial) -> list[RewardResult]:
    """Score each sample with an empty answer; in a group the others keep theirs."""
    empty = [with_answer(sample.x, "") for sample in trial.samples]
    if not trial.group:
        return trial.score(empty)
    group = groups_of([sample.x for sample in trial.samples])
    inputs: list[RewardInput] = []
    groups: list[int] = []
    places: list[int] = []
    for i, number in enumerate(group):
        for j in (j for j, other in enumerate(group) if other == number):
            places += [len(inputs)] if i == j else []
            inputs.append(empty[j] if i == j else trial.samples[j].x)
            groups.append(i)
    results = trial.score(inputs, groups)
    return [results[place] for place in places]


def _errors(result: RewardResult) -> list[str]:
    return [reason for name, reason in result.errors.items() if name != "total"]


def _on_values(trial: _Trial, finding: Finding) -> Finding:
    """Say on how many samples a check was made, where some have no value."""
    count = sum(1 for _ in trial.applies())
    if count == len(trial.samples) or finding.failures:
        return finding
    note = f"on {count} of {len(trial.samples)} samples" if count else "not tried: no sample has a value"
    return replace(finding, note=note, made=count > 0)


def _repeat(trial: _Trial) -> Finding:
    return _same(trial, "the same twice", [sample.x for sample in trial.samples])


def _space(trial: _Trial) -> Finding:
    inputs = [with_answer(sample.x, f"  \n{sample.x.answer}\n\n ") for sample in trial.samples]
    return _same(trial, "independent of white space around the answer", inputs)


def _order(trial: _Trial) -> Finding:
    order = random.Random(0).sample(range(len(trial.samples)), len(trial.samples))
    shuffled = trial.score([trial.samples[i].x for i in order])
    back = [result for _, result in sorted(zip(order, shuffled, strict=True), key=lambda pair: pair[0])]
    return _compare(trial, "independent of the order in the batch", back)


def _same(trial: _Trial, check: str, inputs: Sequence[RewardInput]) -> Finding:
    return _compare(trial, check, trial.score(inputs))


def _compare(trial: _Trial, check: str, results: Sequence[RewardResult]) -> Finding:
    changed = [
        f"{sample.id}: {trial.value(first)} became {trial.value(second)}"
        for sample, first, second in zip(trial.samples, trial.gold, results, strict=True)
        if trial.value(first) != trial.value(second)
    ]
    return _on_values(trial, Finding(check, changed))


def _attacks(trial: _Trial) -> Finding:
    finding = Finding("survives the attack corpus")
    tried = [sample for sample, _ in trial.applies()][:ATTACKED]
    if not tried:
        return _on_values(trial, finding)
    won, begun = [], time.perf_counter()
    for name, attack in ATTACKS.items():
        results = trial.score([with_answer(sample.x, attack) for sample in tried])
        reasons = {reason for result in results for reason in _errors(result)}
        finding.failures += [f"{name}: {reason}" for reason in sorted(reasons)]
        if results and all(trial.value(result) == trial.high for result in results):
            won.append(name)
    finding.note = f"{len(ATTACKS)} attacks on {len(tried)} samples in {time.perf_counter() - begun:.1f} s"
    if won and trial.high > 0:
        finding.note += f"; full marks for: {', '.join(won)} — is that meant?"
    return finding
