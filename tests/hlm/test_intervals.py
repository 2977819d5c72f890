from __future__ import annotations

import pytest
from scipy.stats import binomtest

from hlm.intervals import wilson_interval


@pytest.mark.parametrize("trials", [1, 7, 100, 5_000])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_equals_scipy(trials, share):
    failures = round(share * trials)
    expected = binomtest(failures, trials).proportion_ci(0.95, method="wilson")
    assert wilson_interval(failures, trials) == pytest.approx((expected.low, expected.high))


def test_nothing_is_known_without_trials():
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("failures", "trials"), [(-1, 2), (3, 2), (float("nan"), 2)])
def test_impossible_counts_are_refused(failures, trials):
    with pytest.raises(ValueError, match="failures"):
        wilson_interval(failures, trials)
