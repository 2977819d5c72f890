from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlm.betting import FRACTIONS, WEIGHTS, log_terms, log_wealth, wealth_bounds

losses = st.lists(st.floats(0, 1), min_size=1, max_size=20)


@given(losses, st.floats(0.01, 0.9))
def test_terms_add_up_and_equal_the_product_of_bets(values, alpha):
    bets = FRACTIONS / (1 - alpha)
    wealth = sum(
        w * math.prod(1 + b * (alpha - x) for x in values)
        for w, b in zip(WEIGHTS, bets, strict=True)
    )
    terms = sum((log_terms(np.array([x]), alpha) for x in values), np.zeros(len(FRACTIONS)))
    assert np.allclose(terms, log_terms(np.array(values), alpha))
    assert log_wealth(terms) == pytest.approx(math.log(wealth))


@given(losses, st.floats(0.01, 0.9), st.floats(1, 8))
def test_bounds_hold(values, alpha, bound):
    low, high = wealth_bounds(len(values), alpha, bound)
    terms = log_terms(np.array(values) * bound, alpha, bound)
    assert (low - 1e-9 <= terms).all() and (terms <= high + 1e-9).all()


@pytest.mark.parametrize("alpha", [0.05, 0.3])
def test_expected_wealth_never_grows_when_the_mean_risk_is_alpha(alpha):
    """Enumeration over two clients of different risk whose mean is alpha: two prompts each."""
    for share in (0.0, 0.4, 1.0):
        means = np.array([alpha * (1 + share), alpha * (1 - share)] * 2)
        expected = 0.0
        for outcome in itertools.product((0.0, 1.0), repeat=4):
            x = np.array(outcome)
            chance = float(np.prod(np.where(x == 1, means, 1 - means)))
            expected += chance * math.exp(log_wealth(log_terms(x, alpha)))
        assert expected <= 1 + 1e-12


def test_looking_after_every_loss_costs_nothing():
    """False-alarm rate of this test below 1e-6: 4,000 walks, violations Binomial(4000, <= .1)."""
    rng = np.random.default_rng(5)
    alpha, delta = 0.1, 0.1
    x = (rng.random((4000, 400)) < alpha).astype(float)
    terms = np.log1p(FRACTIONS / (1 - alpha) * (alpha - x[..., None])).cumsum(axis=1)
    wealth = (WEIGHTS * np.exp(terms)).sum(axis=-1)
    rejected = (wealth >= 1 / delta).any(axis=1).mean()
    assert rejected <= delta + 5 * math.sqrt(delta * (1 - delta) / 4000)


def test_a_small_risk_is_certified_soon():
    # Ten tokens a prompt, 2 % of them wrong, against alpha = .05: about two rounds of 60 prompts.
    rng = np.random.default_rng(6)
    x = rng.binomial(10, 0.02, size=(200, 180)) / 10
    won = [log_wealth(log_terms(row, 0.05)) >= math.log(20) for row in x]
    assert np.mean(won) > 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.5], 0.0), "alpha"),
        (([0.5], 0.1, 0.5), "bound"),
        (([1.5], 0.1), "losses"),
        (([float("nan")], 0.1), "losses"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    values, *rest = arguments
    with pytest.raises(ValueError, match=message):
        log_terms(np.array(values), *rest)
