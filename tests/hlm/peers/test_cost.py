"""The peers' rule against plain arithmetic; fitted hit ratios against scipy's fit."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from hlm.peers.cost import HitRatioFit, PeerCosts, fit_hit_ratio

quick = settings(max_examples=100, deadline=None)


costs = st.floats(0, 100)


@quick
@given(costs, costs, costs, st.floats(0, 1), st.floats(0, 1))
def test_asking_is_worth_it_when_it_costs_less(
    peer: float, llm: float, error: float, false_hit: float, hit: float
) -> None:
    prices = PeerCosts(peer, llm, error, false_hit)
    by_cases = (1 - hit) * (peer + llm) + hit * (1 - false_hit) * peer
    by_cases += hit * false_hit * (peer + error)
    assert prices.expected(hit) == pytest.approx(by_cases, abs=1e-9)
    if prices.expected(hit) < llm - 1e-9:
        assert prices.worth_asking(hit)
    if prices.expected(hit) > llm + 1e-9:
        assert not prices.worth_asking(hit)


def test_the_papers_rule() -> None:
    prices = PeerCosts(peer=2.0, llm=8.0)
    assert prices.least_hit_probability() == 0.25
    assert prices.worth_asking(0.25) and not prices.worth_asking(0.2499)
    assert prices.expected(0.5) == 0.5 * (2 + 8) + 0.5 * 2
    assert PeerCosts(2.0, 8.0, error=20.0, false_hit=0.2).least_hit_probability() == 0.5
    assert PeerCosts(2.0, 8.0, error=20.0, false_hit=0.4).least_hit_probability() == math.inf
    assert not PeerCosts(0.0, 0.0).worth_asking(1.0)


@quick
@given(st.floats(1e-6, 1e2), st.lists(st.floats(0.05, 5), min_size=1, max_size=8))
def test_a_perfect_curve_is_found_again(alpha: float, places: list[float]) -> None:
    sizes = np.array(places) / alpha
    fit = fit_hit_ratio(sizes, 1 - np.exp(-alpha * sizes))
    assert fit.alpha == pytest.approx(alpha, rel=1e-5)
    assert fit.rmse < 1e-7
    np.testing.assert_allclose(fit.ratio(sizes), 1 - np.exp(-alpha * sizes), atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_noisy_curves_equal_scipys_fit(seed: int) -> None:
    random = np.random.default_rng(seed)
    sizes = np.array([10.0, 50, 100, 500, 1000, 5000])
    ratios = np.clip(1 - np.exp(-0.003 * sizes) + random.normal(0, 0.05, 6), 0, 1)
    fit = fit_hit_ratio(sizes, ratios)
    (alpha,), _ = optimize.curve_fit(
        lambda size, rate: 1 - np.exp(-rate * size), sizes, ratios, p0=[0.003]
    )
    assert fit.alpha == pytest.approx(alpha, rel=1e-4)
    residuals = ratios - 1 + np.exp(-alpha * sizes)
    assert fit.rmse == pytest.approx(math.sqrt(np.mean(residuals**2)), rel=1e-6)


def test_curves_at_the_ends() -> None:
    assert fit_hit_ratio([0, 10, 100], [0, 0, 0]) == HitRatioFit(0.0, 0.0)
    assert fit_hit_ratio([1, 10], [1, 1]).rmse < 1e-9


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("peer", lambda: PeerCosts(-1.0, 1.0)),
        ("false_hit", lambda: PeerCosts(1.0, 1.0, 1.0, 2.0)),
        ("hit_probability", lambda: PeerCosts(1.0, 1.0).worth_asking(1.5)),
        ("sizes", lambda: fit_hit_ratio([0.0], [0.5])),
        ("sizes", lambda: fit_hit_ratio([1.0, 2.0], [0.5])),
        ("ratios", lambda: fit_hit_ratio([1.0], [math.nan])),
    ],
)
def test_bad_values_are_named(name: str, build: object) -> None:
    with pytest.raises(ValueError, match=name):
        build()  # type: ignore[operator]
