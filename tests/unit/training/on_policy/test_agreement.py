"""Engine against learner: what must agree, what is reported apart, and what no mean may hide."""

import math

import numpy as np
import pytest
import torch

from posttrain.training.on_policy.agreement import Agreement, PolicyMismatch, SampledBy
from posttrain.training.on_policy.token_classes import CLASSES, COORDINATES, DIGITS, TEXT

N = 1000


def judged(
    gap: np.ndarray,
    classes: np.ndarray | None = None,
    *,
    exact: bool = False,
    older: np.ndarray | None = None,
    approximate: np.ndarray | None = None,
    rows: int = 3,
) -> dict[str, float]:
    """Compare an engine whose log-probs are lower by `gap`, with tolerances of float32 or bfloat16."""
    count = len(gap)
    nothing = np.zeros(count, dtype=bool)
    classes = np.full(count, TEXT, np.int8) if classes is None else classes
    agreement = Agreement(1e-4 if exact else 0.05, exact)
    for part in np.array_split(np.arange(count), rows):
        engine = torch.full((len(part),), -1.0)
        agreement.add(
            engine + torch.from_numpy(gap[part]).float(),
            torch.full((len(part),), 2e-4),
            SampledBy(
                engine,
                classes[part],
                (nothing if older is None else older)[part],
                (nothing if approximate is None else approximate)[part],
            ),
        )
    return agreement.judge()


def rounding(scale: float, count: int = N) -> np.ndarray:
    return np.random.default_rng(0).normal(0, scale, count)


def test_rounding_passes_and_is_measured() -> None:
    gap = rounding(0.02)
    metrics = judged(gap)
    size = np.abs(gap)
    assert metrics["logprob_gap/mean"] == pytest.approx(size.mean(), rel=1e-5)
    assert metrics["logprob_gap/max"] == pytest.approx(size.max(), rel=1e-4)
    assert metrics["kl/engine_learner"] == pytest.approx((np.exp(gap) - 1 - gap).mean(), rel=1e-3)
    assert metrics["banned_mass"] == pytest.approx(2e-4)
    for end, share in (("p50", 0.5), ("p99", 0.99)):
        expected = np.quantile(size, share, method="inverted_cdf")
        assert expected * 0.99 <= metrics[f"class_gap/text_{end}"] <= expected * 1.07
    assert metrics["class_gap/text_max"] == metrics["logprob_gap/max"]
    assert not any("coordinates" in name for name in metrics)  # there are none
    assert not any(name.startswith(("drift/", "approximate/")) for name in metrics)


@pytest.mark.parametrize("share", [1.0, 0.1])
def test_wrong_digits_of_boxes_do_not_hide_in_the_mean(share: float) -> None:
    """1.5 nats on the digits of boxes, 2 % of all tokens; or on a tenth of twice as many."""
    classes = np.full(N, TEXT, np.int8)
    count = int(0.02 * N / share)
    classes[:count] = COORDINATES
    classes[500:600] = DIGITS
    gap = rounding(0.01)
    judged(gap, classes)
    gap[: int(share * count)] += 1.5
    assert np.abs(gap).mean() < 0.05
    with pytest.raises(
        PolicyMismatch, match=rf"more than 10 times as much for 20 of {count} tokens of coord"
    ):
        judged(gap, classes)


def test_a_few_tokens_of_a_small_class_may_differ() -> None:
    classes = np.full(N, TEXT, np.int8)
    classes[:12] = COORDINATES
    gap = rounding(0.01)
    gap[:3] = 0.7
    judged(gap, classes)
    gap[3] = 0.7
    with pytest.raises(PolicyMismatch, match="4 of 12 tokens of coordinates"):
        judged(gap, classes)


def test_float32_allows_no_token_to_differ() -> None:
    gap = rounding(1e-6)
    judged(gap, exact=True)
    gap[17] = 2e-4
    classes = np.full(N, TEXT, np.int8)
    classes[17] = COORDINATES
    with pytest.raises(PolicyMismatch, match=r"by 2\.00e-04 \(coordinates\)"):
        judged(gap, classes, exact=True)


@pytest.mark.parametrize("exact", [True, False])
def test_a_log_prob_that_is_no_number_is_refused(exact: bool) -> None:
    gap = rounding(1e-6)
    gap[5] = math.nan
    with pytest.raises(PolicyMismatch):
        judged(gap, exact=exact)


def test_older_versions_and_kept_caches_are_reported_apart() -> None:
    gap = rounding(1e-6)
    older, approximate = np.zeros(N, dtype=bool), np.zeros(N, dtype=bool)
    older[:100], approximate[50:200] = True, True
    gap[:50] = 0.3
    gap[50:200] = -0.1
    metrics = judged(gap, exact=True, older=older, approximate=approximate)
    assert metrics["logprob_gap/max"] < 1e-5
    assert metrics["drift/tokens"] == pytest.approx(50 / N)
    assert metrics["drift/gap"] == pytest.approx(0.3, rel=1e-5)
    assert metrics["drift/kl"] == pytest.approx(math.exp(0.3) - 1.3, rel=1e-5)
    assert metrics["approximate/tokens"] == pytest.approx(150 / N)
    assert metrics["approximate/gap"] == pytest.approx(0.1, rel=1e-5)


def test_nothing_to_compare_is_no_mismatch() -> None:
    assert judged(np.zeros(0), exact=True, rows=1) == {}
    everything = np.ones(4, dtype=bool)
    assert "logprob_gap/max" not in judged(np.ones(4), exact=True, older=everything, rows=1)


def test_classes_are_named_as_their_metrics() -> None:
    assert CLASSES[COORDINATES] == "coordinates"
