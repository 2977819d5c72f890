"""Noisy risk curves: sensitivity, size of the noise, and the guarantees by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlm.risk import (
    ESCALATE_ALL,
    CurveRelease,
    NoisyCurve,
    conformal_threshold,
    learn_then_test,
    private_conformal_threshold,
    private_learn_then_test,
    risk_sums,
    threshold_grid,
)
from hlm.risk.private import curve_sensitivity, square_root_sums

POINTS = 24
GRID = threshold_grid(POINTS)


def client_risk(rng: np.random.Generator, prompts: int, bound: float = 1.0) -> np.ndarray:
    """Summed risk of one client's prompts, sure and unsure, right and wrong."""
    if not prompts:
        return np.zeros(POINTS)
    u = rng.choice(np.concatenate([GRID, rng.random(4)]), (prompts, 3))
    loss = bound * rng.choice([0.0, 1.0, rng.random()], (prompts, 3))
    return risk_sums(u.ravel(), loss.ravel(), np.repeat(np.arange(prompts), 3), GRID).risk


@pytest.mark.parametrize("points", [1, 2, 7, 64])
def test_the_root_squared_adds_up(points: int) -> None:
    root = square_root_sums(points)
    np.testing.assert_allclose(root @ root, np.tril(np.ones((points, points))), atol=1e-12)


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    mine=st.integers(0, 4),
    other=st.integers(0, 4),
    bound=st.sampled_from([1.0, 4.0]),
)
def test_no_two_clients_are_further_apart_than_the_sensitivity(
    seed: int, mine: int, other: int, bound: float
) -> None:
    rng = np.random.default_rng(seed)
    release = CurveRelease(POINTS, 4, bound, 0.1, 1.0)
    vectors = [release.encode(client_risk(rng, count, bound), count) for count in (mine, other)]
    # Neither of the two public numbers tells one client from the other.
    assert (vectors[0][:2] == vectors[1][:2]).all()
    assert np.linalg.norm(vectors[0] - vectors[1]) <= release.sensitivity + 1e-9


def test_the_sensitivity_is_reached_and_beats_other_encodings() -> None:
    release = CurveRelease(64, 3, 1.0, 0.1, 1.0)
    first = release.encode(np.full(64, 3.0), 3)
    apart = []
    for point in range(64):
        step = np.where(np.arange(64) >= point, 3.0, 0.0)
        apart.append(np.linalg.norm(first - release.encode(step, 3)))
    apart.append(np.linalg.norm(first[2:]))
    assert max(apart) == pytest.approx(release.sensitivity)
    worst = curve_sensitivity(64) * np.linalg.norm(square_root_sums(64), axis=1).max()
    # The figures of the module's docstring: the curve itself, and its increments.
    assert worst == pytest.approx(2.955, abs=0.001)
    assert worst < math.sqrt(64) < math.sqrt(2 * 64)


def test_a_sum_of_clients_is_read_with_noise_of_the_stated_size() -> None:
    rng = np.random.default_rng(1)
    release = CurveRelease(POINTS, 4, 2.0, 0.1, 0.7)
    clients = [(client_risk(rng, count, 2.0), count) for count in (4, 2, 0)]
    exact = sum(release.encode(*client) for client in clients)
    truth = sum(risk + (4 - count) * 0.1 for risk, count in clients)
    np.testing.assert_allclose(release.read(exact).risk, truth, atol=1e-9)
    reads = [
        release.read(release.add_noise(release.add_noise(exact, rng), rng)) for _ in range(4000)
    ]
    assert {read.prompts for read in reads} == {12}
    errors = np.stack([read.risk for read in reads]) - truth
    # Relative standard error of a deviation from 4,000 draws is 1.1 %; 7 % is over six of them
    # for each of 24 points (false alarm below 1e-7), and so is .1 deviations for the mean.
    np.testing.assert_allclose(errors.std(axis=0), reads[0].deviation, rtol=0.07)
    assert (np.abs(errors.mean(axis=0)) < 0.1 * reads[0].deviation).all()


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**31), prompts=st.integers(0, 400))
def test_without_noise_the_thresholds_are_those_of_the_exact_rules(seed: int, prompts: int) -> None:
    rng = np.random.default_rng(seed)
    risk = np.sort(rng.random(POINTS)) * prompts * rng.random()
    curve = NoisyCurve(risk, np.zeros(POINTS), prompts)
    exact = learn_then_test(risk, prompts, GRID, 0.2, 0.1)
    assert private_learn_then_test(curve, GRID, 0.2, 0.1) == exact
    # Conformal control pays for noise with 2^-30 of alpha at least.
    almost = conformal_threshold(risk, prompts, GRID, 0.2 * (1 - 2.0**-30))
    assert private_conformal_threshold(curve, GRID, 0.2) == almost


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**31), more=st.floats(1, 20))
def test_more_noise_of_the_same_reading_never_keeps_more(seed: int, more: float) -> None:
    rng = np.random.default_rng(seed)
    risk = np.sort(rng.random(POINTS)) * 100
    narrow = NoisyCurve(risk, np.full(POINTS, 2.0), 400)
    wide = NoisyCurve(risk, np.full(POINTS, 2.0 * more), 400)
    assert private_conformal_threshold(wide, GRID, 0.2) <= private_conformal_threshold(
        narrow, GRID, 0.2
    )
    assert private_learn_then_test(wide, GRID, 0.2, 0.1) <= private_learn_then_test(
        narrow, GRID, 0.2, 0.1
    )


def harsh_draws(rng: np.random.Generator, runs: int, prompts: int) -> tuple[np.ndarray, np.ndarray]:
    """(summed risks [runs, G], true risk [G]) of prompts that are wholly wrong or wholly right.

    A prompt is lost from a point of its own on, with chance .3 at all: among losses in [0, 1] of
    the same mean these vary most.
    """
    truth = 0.3 * np.linspace(0, 1, POINTS) ** 2
    lost = rng.multinomial(prompts, [*np.diff(truth, prepend=0.0), 0.7], size=runs)
    return np.cumsum(lost[:, :-1], axis=1).astype(float), truth


@pytest.mark.parametrize("multiplier", [0.5, 2.0, 8.0])
@pytest.mark.parametrize("clients", [10, 100])
def test_guarantees_hold_over_texts_and_noise(multiplier: float, clients: int) -> None:
    """Mean risk <= alpha, violations <= delta: 2,000 runs each, noise on the server.

    Risks lie in [0, .3], so the mean of 2,000 has a standard error of at most .15/sqrt(2000);
    violations one of sqrt(delta (1 - delta) / 2000). At five of them each of the six cases raises
    a false alarm with probability below 3e-7.
    """
    runs, prompts, alpha, delta = 2000, 4, 0.1, 0.1
    rng = np.random.default_rng([int(multiplier * 2), clients])
    release = CurveRelease(POINTS, prompts, 1.0, alpha, multiplier)
    sums, truth = harsh_draws(rng, runs, clients * prompts)
    mean, above, kept = [], [], 0
    for row in sums:
        increments = np.diff(row, prepend=0.0)
        vector = np.concatenate([[clients * prompts, 0.0], square_root_sums(POINTS) @ increments])
        curve = release.read(release.add_noise(vector, rng))
        conformal = private_conformal_threshold(curve, GRID, alpha)
        careful = private_learn_then_test(curve, GRID, alpha, delta)
        mean.append(truth[GRID == conformal].sum())
        above.append(truth[GRID == careful].sum() > alpha)
        kept += conformal > ESCALATE_ALL
    assert np.mean(mean) <= alpha + 5 * 0.15 / math.sqrt(runs)
    assert np.mean(above) <= delta + 5 * math.sqrt(delta * (1 - delta) / runs)
    if clients == 100 and multiplier == 0.5:
        # Not by escalating everything.
        assert kept > 0.99 * runs and np.mean(mean) > 0.03


def test_noise_on_a_rule_that_ignores_it_breaks_the_guarantee() -> None:
    """What the simulation above would see if the noise were not allowed for."""
    rng = np.random.default_rng(3)
    release = CurveRelease(POINTS, 4, 1.0, 0.1, 8.0)
    sums, truth = harsh_draws(rng, 500, 40)
    above = 0
    for row in sums:
        increments = np.diff(row, prepend=0.0)
        vector = np.concatenate([[40, 0.0], square_root_sums(POINTS) @ increments])
        noisy = release.read(release.add_noise(vector, rng)).risk
        last = np.flatnonzero(np.maximum(noisy, 0) + 1 <= 0.1 * 41)
        above += len(last) > 0 and truth[last[-1]] > 0.1
    assert above > 200


def test_few_clients_keep_nothing_rather_than_guess() -> None:
    release = CurveRelease(POINTS, 4, 1.0, 0.05, 4.0)
    rng = np.random.default_rng(0)
    exact = sum(release.encode(np.zeros(POINTS), 4) for _ in range(5))
    found = [
        private_conformal_threshold(release.read(release.add_noise(exact, rng)), GRID, 0.05)
        for _ in range(200)
    ]
    # A curve of zeros: only noise of eta's far tail, at most .025 of draws, lets anything pass.
    # 14 of 200 is over four standard deviations above (false alarm below 1e-3 at worst).
    assert np.sum(np.array(found) > ESCALATE_ALL) <= 14


def test_what_no_client_can_send_is_named() -> None:
    release = CurveRelease(POINTS, 4, 1.0, 0.1, 1.0)
    rng = np.random.default_rng(0)
    exact = release.encode(client_risk(rng, 4), 4)
    noisy = release.add_noise(exact, rng)
    assert release.problem(exact, 0) == "" and release.problem(noisy, 1) == ""
    assert "noises" in release.problem(exact, 1) and "noises" in release.problem(noisy, 0)
    assert "finite" in release.problem(np.append(noisy[:-1], np.nan), 1)
    assert "numbers" in release.problem(noisy[:-1], 1)
    assert "beyond" in release.problem(np.append(noisy[:-1], 1e30), 1)
    assert "beyond" in release.problem(np.append(exact[:-1], -1.0), 0)
    more = noisy.copy()
    more[0] = 400
    assert "prompts" in release.problem(more, 1)


@pytest.mark.parametrize(
    ("risk", "prompts"),
    [
        (np.linspace(1, 0, POINTS), 4),
        (np.linspace(0, 4.5, POINTS), 4),
        (np.linspace(0, 1, POINTS), 5),
        (np.full(POINTS, np.nan), 4),
        (np.zeros(POINTS - 1), 4),
        (np.linspace(-1, 1, POINTS), 4),
    ],
)
def test_a_curve_without_a_sensitivity_is_not_encoded(risk: np.ndarray, prompts: int) -> None:
    with pytest.raises(ValueError, match="risk"):
        CurveRelease(POINTS, 4, 1.0, 0.1, 1.0).encode(risk, prompts)


@pytest.mark.parametrize(
    "changes",
    [
        {"points": 0},
        {"prompts": 0},
        {"bound": 0.5},
        {"alpha": 1.0},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": math.nan},
    ],
)
def test_options_out_of_range(changes: dict[str, float]) -> None:
    good = {"points": 4, "prompts": 1, "bound": 1.0, "alpha": 0.1, "noise_multiplier": 1.0}
    with pytest.raises(ValueError, match=next(iter(changes))):
        CurveRelease(**{**good, **changes})  # type: ignore[arg-type]


def test_bad_arguments_of_the_rules() -> None:
    curve = NoisyCurve(np.zeros(POINTS), np.ones(POINTS), 10)
    with pytest.raises(ValueError, match="alpha"):
        private_conformal_threshold(curve, GRID, 1.0)
    with pytest.raises(ValueError, match="delta"):
        private_learn_then_test(curve, GRID, 0.1, 0.0)
    with pytest.raises(ValueError, match="risk"):
        private_conformal_threshold(NoisyCurve(np.zeros(3), np.ones(3), 10), GRID, 0.1)
    nobody = NoisyCurve(np.zeros(POINTS), np.zeros(POINTS), 0)
    assert private_learn_then_test(nobody, GRID, 0.1, 0.1) == ESCALATE_ALL
