from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from hlm.privacy import gaussian_epsilon, private_update


def _exact_delta(epsilon: float, multiplier: float) -> float:
    """Exact delta of one Gaussian release (Balle and Wang, arXiv 1805.06530, theorem 8)."""
    return float(
        norm.cdf(0.5 / multiplier - epsilon * multiplier)
        - math.exp(epsilon) * norm.cdf(-0.5 / multiplier - epsilon * multiplier)
    )


@given(st.floats(0.5, 50), st.integers(1, 200), st.sampled_from([1e-3, 1e-5, 1e-7]))
def test_epsilon_is_the_analytic_gaussian_mechanisms(
    multiplier: float, releases: int, delta: float
) -> None:
    # R Gaussian releases are one of multiplier z/sqrt(R).
    epsilon = gaussian_epsilon(multiplier, releases, delta)
    together = multiplier / math.sqrt(releases)
    if epsilon == 0:
        assert _exact_delta(0, together) <= delta
    elif epsilon < 500:
        # Tight, not only sound; scipy's two terms cancel beyond that.
        assert _exact_delta(epsilon, together) == pytest.approx(delta, rel=1e-4)
    # Never more than zero-concentrated accounting says (Bun and Steinke, arXiv 1605.02658).
    rho = 1 / (2 * together**2)
    assert epsilon <= rho + 2 * math.sqrt(rho * math.log(1 / delta))


def test_epsilon_by_hand() -> None:
    # Where the textbook asks for sigma 4.84, the analytic calibration asks for 3.73.
    assert gaussian_epsilon(3.7306316, 1, 1e-5) == pytest.approx(1.0, rel=1e-6)
    assert gaussian_epsilon(4.0, 16, 1e-5) == pytest.approx(gaussian_epsilon(1.0, 1, 1e-5))
    assert gaussian_epsilon(4.0, 0, 1e-5) == 0
    # Hardly any noise: epsilon ~ mu^2/2, without overflow; and so much that nothing is spent.
    assert gaussian_epsilon(1e-9, 1, 1e-5) == pytest.approx(5e17, rel=1e-6)
    assert gaussian_epsilon(1e7, 1, 1e-5) == 0


def test_private_update_clips_then_adds_the_stated_noise() -> None:
    generator = np.random.default_rng(1)
    start, far = np.array([0.2, 0.3]), np.array([3.2, 4.3])
    draws = np.array([private_update(far, start, 0.5, 1.5, generator) for _ in range(20_000)])
    # Mean start + (.3, .4), standard deviation 2 * .5 * 1.5 = 1.5. Five standard errors (false
    # alarm below 3e-6): 5 * 1.5 / sqrt(20000) = .053 and for the deviation about .038.
    np.testing.assert_allclose(draws.mean(0), [0.5, 0.7], atol=0.053)
    np.testing.assert_allclose(draws.std(0), 1.5, atol=0.038)


def test_private_update_leaves_its_input() -> None:
    policy, start = np.array([0.9]), np.array([0.1])
    private_update(policy, start, 0.2, 3.0, np.random.default_rng(0))
    assert (policy[0], start[0]) == (0.9, 0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian_epsilon(0.0, 1, 1e-5), "noise_multiplier"),
        (lambda: gaussian_epsilon(1.0, -1, 1e-5), "releases"),
        (lambda: gaussian_epsilon(1.0, 1, 1.0), "delta"),
        (
            lambda: private_update(np.zeros(1), np.zeros(1), 0.0, 1.0, np.random.default_rng(0)),
            "clip",
        ),
        (
            lambda: private_update(np.zeros(1), np.zeros(2), 1.0, 1.0, np.random.default_rng(0)),
            "shape",
        ),
    ],
)
def test_bad_input_is_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
