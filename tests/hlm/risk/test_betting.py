from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from hlm.risk.betting import (
    FRACTIONS,
    WEIGHTS,
    log_imbalance,
    log_terms,
    log_wealth,
    wealth_bounds,
)

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


# --- not all answer ---------------------------------------------------------------------------

answers = st.lists(st.integers(0, 50), min_size=2, max_size=8)


@given(answers, st.floats(0.01, 0.4), st.sampled_from([1.0, 4.0]))
def test_the_price_of_imbalance_is_the_largest_product(counts, alpha, bound):
    """Against a numerical optimum; and no random risks whose mean is alpha come above it."""
    c, m = np.array(counts, dtype=float), len(counts)
    price = log_imbalance(c, alpha, bound)
    rng = np.random.default_rng(1)
    for bet, found in zip(FRACTIONS / (bound - alpha), price, strict=True):
        low, high = 1 + bet * (alpha - bound), 1 + bet * alpha
        best = minimize(
            lambda a: -(c @ np.log(a)),
            np.ones(m),
            jac=lambda a: -c / a,
            bounds=[(low, high)] * m,
            constraints=[{"type": "ineq", "fun": lambda a: m - a.sum()}],
        )
        # The optimiser may stop short, never beyond.
        assert -best.fun - 1e-6 <= found
        assert found <= max(-best.fun, 0.0) * 1.001 + 1e-2
        for risks in rng.dirichlet(np.ones(m), 20) * m * alpha:
            if risks.max() <= bound:
                assert c @ np.log(1 + bet * (alpha - risks)) <= found + 1e-9


@given(st.integers(0, 1000), st.integers(1, 50), st.floats(0.01, 0.9))
def test_equal_answers_have_no_price(prompts, clients, alpha):
    assert not log_imbalance(np.full(clients, prompts), alpha).any()


def test_clients_that_never_come_can_make_a_certificate_impossible():
    """One of 20 may be wrong everywhere, which is alpha by itself; one of 200 is a tenth of it."""
    for clients, possible in ((20, False), (200, True)):
        read = np.full(clients, 100)
        read[0] = 0
        won = log_terms(np.zeros(100 * (clients - 1)), 0.05) - log_imbalance(read, 0.05)
        assert (log_wealth(won) > math.log(20)) == possible


@pytest.mark.parametrize("risks", [(0.0, 0.3, 0.6), (0.0, 0.0, 0.9), (0.3, 0.3, 0.3)])
def test_expected_wealth_never_grows_whoever_answers(risks):
    """Enumeration: any clients answer first; who answers then, the worst may choose by the losses.

    Three clients of mean risk alpha, one coin a client and round. Whoever takes the money in the
    better of the two rounds gains nothing either.
    """
    alpha, means = 0.3, np.array(risks)
    subsets = [list(s) for n in (1, 2, 3) for s in itertools.combinations(range(3), n)]

    def outcomes(answering):
        for coins in itertools.product((0.0, 1.0), repeat=len(answering)):
            x = np.array(coins)
            chance = float(np.prod(np.where(x == 1, means[answering], 1 - means[answering])))
            yield chance, log_terms(x, alpha)

    def money(terms, answering):
        read = np.bincount(np.array(answering, dtype=int), minlength=3)
        return math.exp(log_wealth(terms - log_imbalance(read, alpha)))

    for first in subsets:
        expected = 0.0
        for chance, terms in outcomes(first):
            stop = money(terms, first)
            later = [
                sum(p * money(terms + more, first + second) for p, more in outcomes(second))
                for second in subsets
            ]
            expected += chance * max(stop, *later)
        assert expected <= 1 + 1e-9


@pytest.mark.parametrize("bad", [[], [-1.0, 1.0], [float("nan")], [[1.0]]])
def test_counts_out_of_range(bad):
    with pytest.raises(ValueError, match="counts"):
        log_imbalance(np.array(bad), 0.1)


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
