"""Whether the engine sampled from the policy that the learner holds: compared always, by class of token.

Three kinds of sampled tokens are told apart:

    exact        sampled by the learner's present weights: must agree, or nothing is learned
    older        sampled by an earlier version: how far the policy has moved since, which is no fault
    approximate  sampled after a swap that kept the keys and values of older weights: reported by itself

float32 leaves only rounding errors, so the largest gap of any token has a limit. In bfloat16 single tokens
differ by tenths of a nat; there the mean has a limit, and so has the share of each class's tokens that differ
by more than `WIDE` times as much: 1.5 nats on the digits of boxes, 2 % of all tokens, move the mean by 0.03.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from posttrain.run.metric_names import (
    APPROXIMATE_GAP,
    APPROXIMATE_TOKENS,
    BANNED_MASS,
    CLASS_GAP,
    DRIFT_GAP,
    DRIFT_KL,
    DRIFT_TOKENS,
    KL_ENGINE_LEARNER,
    LOGPROB_GAP_MAX,
    LOGPROB_GAP_MEAN,
)
from posttrain.training.core.distributed import max_over_ranks, rank, sum_over_ranks
from posttrain.training.on_policy.token_classes import CLASSES, TokenClasses
from posttrain.types import Trajectory

logger = logging.getLogger(__name__)

#: A token of a bfloat16 model differs widely if its gap is so many times the mean's limit.
WIDE = 10
#: Share of a class's tokens that may differ widely, and how many may where a class has few tokens.
WIDE_SHARE, WIDE_FEW = 0.01, 3
#: Mean probability m of tokens that are never sampled, above which a warning is given: the others are sampled
#: with probabilities larger than those written beside them, by a factor of 1 / (1 − m).
BANNED_LIMIT = 1e-3
#: Quantiles of each class's gaps, by the ends of their metrics' names.
CLASS_QUANTILES = {"p50": 0.5, "p99": 0.99}

#: Edges of the bins in which gaps are counted, so that quantiles are the same on any number of ranks.
_EDGES = torch.logspace(-8, 2, 401, dtype=torch.float64)


class PolicyMismatch(RuntimeError):
    """Engine and learner disagree on the log-probs of the tokens that the engine sampled."""


@dataclass(frozen=True)
class SampledBy:
    """Where the sampled tokens of a row come from, each [T].

    Attributes:
        logprobs: The engine's log-probs.
        classes: The numbers of their classes.
        older: Whether a version before the learner's present weights sampled it.
        approximate: Whether the engine's log-prob is not exact.
    """

    logprobs: Tensor
    classes: np.ndarray
    older: np.ndarray
    approximate: np.ndarray


def sampled_by(
    trajectories: Sequence[Trajectory],
    classes: TokenClasses,
    present: int,
    banned: Tensor | None,
    device: torch.device,
) -> SampledBy:
    """Collect what the engine said of the sampled tokens of a row.

    Args:
        trajectories: The row.
        classes: Tells the classes of tokens.
        present: The policy version of the learner's weights.
        banned: [T] the probability of tokens that are never sampled, if the engine's log-probs are those of
            the distribution without them, as they are at another temperature than 1. They are made those of
            the whole one.
        device: Where to put the log-probs.
    """
    sampled = np.concatenate([np.array(each.sampled) for each in trajectories])
    versions, approximate, logprobs = (
        np.concatenate([np.array(told(each)) for each in trajectories])[sampled]
        for told in (lambda e: e.versions, lambda e: e.approximate, lambda e: e.logprobs)
    )
    engine = torch.from_numpy(logprobs).float().to(device)
    return SampledBy(
        logprobs=engine if banned is None else engine + torch.log1p(-banned),
        classes=np.concatenate([classes.of(e.token_ids, e.sampled) for e in trajectories]),
        older=versions < present,
        approximate=approximate,
    )


class Agreement:
    """Collects the log-probs of a step, and compares them.

    Args:
        tolerance: The stage's tolerance for weights of this type.
        exact: Whether the model computes in float32 (or better).
    """

    def __init__(self, tolerance: float, exact: bool) -> None:
        self._tolerance = tolerance
        self._exact = exact
        self._gaps: list[Tensor] = []
        self._sampled: list[SampledBy] = []
        self._banned: list[Tensor] = []

    def add(self, logprobs: Tensor, banned: Tensor, sampled: SampledBy) -> None:
        """Add the sampled tokens of a row.

        Args:
            logprobs: [T] the learner's log-probs with its present weights.
            banned: [T] the probability of the tokens that the engine never samples.
            sampled: What the engine says.
        """
        self._gaps.append(logprobs.detach() - sampled.logprobs)
        self._banned.append(banned)
        self._sampled.append(sampled)

    def judge(self) -> dict[str, float]:
        """Compare engine and learner over all ranks.

        Returns:
            The metrics, the same on every rank.

        Raises:
            PolicyMismatch: On every rank, if the exact tokens differ by more than the tolerance.
        """
        empty = torch.zeros(0)
        gap = torch.cat([empty, *(each.cpu() for each in self._gaps)]).double()
        banned = torch.cat([empty, *(each.cpu() for each in self._banned)]).double()
        older, approximate, classes = (
            torch.from_numpy(np.concatenate([np.empty(0, kind), *parts]))
            for kind, parts in (
                (bool, [each.older for each in self._sampled]),
                (bool, [each.approximate for each in self._sampled]),
                (np.int8, [each.classes for each in self._sampled]),
            )
        )
        exact = ~older & ~approximate
        metrics = _apart(gap, older & ~approximate, approximate, banned)
        mass = metrics.get(BANNED_MASS, 0.0)
        if mass > BANNED_LIMIT and rank() == 0:
            logger.warning(
                "tokens that may not be sampled, vision placeholders among them, have a mean probability of"
                " %.1e: above %g the log-probs are not those of sampling any more. Teach the policy the"
                " dialogue format by an sft stage first, or lower learning_rate",
                *(mass, BANNED_LIMIT),
            )
        gaps = _ClassGaps(gap[exact], classes[exact].long(), WIDE * self._tolerance)
        metrics |= gaps.metrics()
        self._check(gaps, metrics)
        return metrics

    def _check(self, gaps: "_ClassGaps", metrics: Mapping[str, float]) -> None:
        """Refuse tokens of another policy."""
        reason = ""
        mean = metrics.get(LOGPROB_GAP_MEAN, 0.0)
        if self._exact:
            largest = max(range(len(CLASSES)), key=lambda number: gaps.largest[number])
            measured = gaps.largest[largest]
            if not (measured <= self._tolerance and math.isfinite(mean)):
                reason = f"by {measured:.2e} ({CLASSES[largest]})"
        elif not mean <= self._tolerance:
            reason = f"by {mean:.2e} in the mean"
        elif wide := gaps.wide_classes():
            reason = f"by more than {WIDE} times as much for {wide}"
        if reason:
            raise PolicyMismatch(
                f"engine and learner log-probs of the sampled tokens differ {reason}; the limit is"
                f" logprob_tolerance = {self._tolerance:g}. The engine sampled from other"
                " weights (a publish that was skipped or half done), saw other pixels (compare image hashes"
                " and max_pixels), or uses another precision than the learner (model.dtype)"
            )


class _ClassGaps:
    """The gaps of the exact tokens of all ranks, by class.

    Args:
        gap: [T] the learner's log-probs minus the engine's, of this rank's tokens.
        classes: [T] the numbers of their classes.
        wide: The gap from which a token differs widely.

    Attributes:
        largest: The largest gap of each class; 0 of one without tokens.
    """

    def __init__(self, gap: Tensor, classes: Tensor, wide: float) -> None:
        size = gap.abs()
        bins = torch.bucketize(size, _EDGES)
        counts = torch.zeros(len(CLASSES), len(_EDGES) + 1, dtype=torch.float64)
        counts.index_put_((classes, bins), torch.ones(len(gap), dtype=torch.float64), accumulate=True)
        widely = torch.zeros(len(CLASSES), dtype=torch.float64).index_add_(0, classes, (size > wide).double())
        # E over the engine's samples of (r − 1 − log r), r = π_learner/π_engine: never negative ("k3").
        sums = torch.stack([size.sum(), (gap.exp() - 1 - gap).sum()])
        totals = sum_over_ranks(torch.cat([counts.flatten(), widely, sums]))
        self._counts = totals[: counts.numel()].view_as(counts)
        self._widely = totals[counts.numel() : -2].tolist()
        self._sums = totals[-2:].tolist()
        largest = torch.zeros(len(CLASSES), dtype=torch.float64).scatter_reduce_(0, classes, size, "amax")
        self.largest: list[float] = max_over_ranks(largest).tolist()

    def metrics(self) -> dict[str, float]:
        """Return the means over all exact tokens, and the quantiles of each class that has any."""
        count = self._counts.sum().item()
        if not count:
            return {}
        found = {
            LOGPROB_GAP_MAX: max(self.largest),
            LOGPROB_GAP_MEAN: self._sums[0] / count,
            KL_ENGINE_LEARNER: self._sums[1] / count,
        }
        for number, name in enumerate(CLASSES):
            if self._counts[number].sum():
                quantiles = {end: self._quantile(number, share) for end, share in CLASS_QUANTILES.items()}
                quantiles["max"] = self.largest[number]
                found |= {f"{CLASS_GAP}{name}_{end}": value for end, value in quantiles.items()}
        return found

    def _quantile(self, number: int, share: float) -> float:
        """Return a quantile of a class, rounded up to the edge of a bin (6 %)."""
        below = self._counts[number].cumsum(0)
        place = int(torch.searchsorted(below, share * below[-1]))
        edge = _EDGES[place].item() if place < len(_EDGES) else math.inf
        return min(edge, self.largest[number])

    def wide_classes(self) -> str:
        """Name the classes of which too many tokens differ widely; empty if there are none."""
        told = []
        for name, widely, count in zip(CLASSES, self._widely, self._counts.sum(1).tolist(), strict=True):
            if widely > max(WIDE_FEW, WIDE_SHARE * count):
                told.append(f"{widely:.0f} of {count:.0f} tokens of {name}")
        return ", ".join(told)


def _apart(gap: Tensor, older: Tensor, approximate: Tensor, banned: Tensor) -> dict[str, float]:
    """Return the metrics of tokens of older versions and of approximate ones, and the banned tokens'."""
    moved, kept = gap[older], gap[approximate]
    sums = [len(gap), banned.sum(), len(moved), moved.abs().sum(), (moved.exp() - 1 - moved).sum()]
    sums += [len(kept), kept.abs().sum()]
    figures = sum_over_ranks(torch.tensor(sums, dtype=torch.float64)).tolist()
    count, mass, num_older, of_older, kl, num_approximate, of_approximate = figures
    metrics = {BANNED_MASS: mass / count} if count else {}
    if num_older:
        metrics |= {
            DRIFT_TOKENS: num_older / count,
            DRIFT_GAP: of_older / num_older,
            DRIFT_KL: kl / num_older,
        }
    if num_approximate:
        metrics |= {
            APPROXIMATE_TOKENS: num_approximate / count,
            APPROXIMATE_GAP: of_approximate / num_approximate,
        }
    return metrics
