"""The line from noisy sums: sensitivity, exactness without noise, and when it is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlm.line import DegenerateLineError, LineSums
from hlm.private_line import LineRelease

UNIT = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))
TOKENS = st.lists(st.tuples(UNIT, UNIT, st.booleans()), max_size=5)


def tokens_of(seed: int, count: int) -> LineSums:
    rng = np.random.default_rng(seed)
    u = rng.random(count)
    return LineSums.of(u, np.clip(0.8 * u - 0.1 + 0.1 * rng.normal(size=count), 0, 1))


def encoded(release: LineRelease, rows: list[tuple[float, float, bool]]) -> np.ndarray:
    u, beta, below = (np.array([row[k] for row in rows]) for k in range(3))
    sums = LineSums.of(u.astype(float), beta.astype(float))
    return release.encode(replace(sums, lower=float(below.sum())))


@settings(max_examples=300, deadline=None)
@given(mine=TOKENS, other=TOKENS)
def test_no_two_clients_are_further_apart_than_the_sensitivity(mine, other) -> None:
    release = LineRelease(5, 1.0)
    apart = np.linalg.norm(encoded(release, mine) - encoded(release, other))
    assert apart <= release.sensitivity + 1e-9


def test_the_sensitivity_is_reached() -> None:
    release = LineRelease(5, 1.0)
    low, high = [(0.0, 0.0, False)] * 5, [(1.0, 1.0, True)] * 5
    apart = np.linalg.norm(encoded(release, low) - encoded(release, high))
    assert apart == pytest.approx(release.sensitivity)
    # The bound of the docstring, on a fine lattice of d and f.
    d, f = np.meshgrid(np.linspace(0, 1, 401), np.linspace(0, 1, 401))
    bound = d**2 * (1 + (1 - d) ** 2) + f**2 + (d * (1 - f) + f * (1 - d)) ** 2 / 4
    assert bound.max() == pytest.approx(2.0)


def test_without_noise_the_line_is_the_exact_one() -> None:
    parts = [tokens_of(seed, 40) for seed in range(5)]
    release = LineRelease(40, 1.0)
    exact = sum(parts[1:], parts[0]).fit()
    found = release.fit(sum(release.encode(part) for part in parts))
    assert found.slope == pytest.approx(exact.slope)
    assert found.intercept == pytest.approx(exact.intercept)
    assert found.lower_share == pytest.approx(exact.lower_share)


def test_many_clients_tell_the_line_through_the_noise_and_few_do_not() -> None:
    rng = np.random.default_rng(0)
    release = LineRelease(40, 2.0)
    one = release.encode(tokens_of(0, 40))
    exact = tokens_of(0, 40).fit()
    thresholds = [release.fit(release.add_noise(one * 5000, rng)).risk_averse for _ in range(20)]
    # Noise of 139 on sums of 200,000: the threshold moves by some hundredths at most.
    np.testing.assert_allclose(thresholds, exact.risk_averse, atol=0.05)
    for _ in range(50):
        with pytest.raises(DegenerateLineError, match="noise"):
            release.fit(release.add_noise(one * 8, rng))


def test_noise_is_of_the_stated_size() -> None:
    rng = np.random.default_rng(0)
    release = LineRelease(10, 0.5)
    draws = np.stack([release.add_noise(np.zeros(7), rng) for _ in range(4000)])
    assert (draws[:, 0] == 1).all()
    # Relative standard error 1.1 %; 7 % is over six of them.
    np.testing.assert_allclose(draws[:, 1:].std(axis=0), 5 * math.sqrt(3), rtol=0.07)


def test_bad_input_is_named() -> None:
    release = LineRelease(10, 1.0)
    good = release.encode(tokens_of(0, 10))
    assert release.problem(good, 0) == ""
    assert "noises" in release.problem(good, 1)
    assert "finite" in release.problem(np.append(good[:-1], np.inf), 0)
    assert "numbers" in release.problem(good[:-1], 0)
    assert "beyond" in release.problem(np.append(good[:-1], 1e30), 0)
    with pytest.raises(ValueError, match="count"):
        release.encode(tokens_of(0, 11))
    with pytest.raises(ValueError, match="tokens"):
        LineRelease(0, 1.0)
    with pytest.raises(ValueError, match="noise_multiplier"):
        LineRelease(1, math.nan)
