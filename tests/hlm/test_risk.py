"""Risk curves, conformal risk control and Learn-then-Test."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from benchmarks._risk_curves import prompt_curves, risk_at
from hlm.risk import (
    ESCALATE_ALL,
    RiskSums,
    binomial_cdf,
    conformal_threshold,
    hoeffding_bentkus,
    learn_then_test,
    risk_bound,
    risk_sums,
    threshold_grid,
)
from hlm.risk.curves import UNIT

GRID = np.linspace(0, 1, 21)


def simulated(prompts: int, tokens: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prompts of differing difficulty: (u, loss, prompt) with P(wrong | u, prompt) rising in u."""
    rng = np.random.default_rng(seed)
    difficulty = rng.beta(1, 3, prompts)[:, None]
    u = rng.random((prompts, tokens))
    loss = (rng.random((prompts, tokens)) < np.clip(difficulty * 2 * u, 0, 1)).astype(float)
    return u.ravel(), loss.ravel(), np.repeat(np.arange(prompts), tokens)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 60), prompts=st.integers(1, 6))
def test_curves_equal_brute_force(seed: int, rows: int, prompts: int) -> None:
    rng = np.random.default_rng(seed)
    # Half of the uncertainties lie exactly on the grid, where "u <= th" must include equality.
    u = np.where(rng.random(rows) < 0.5, rng.choice(GRID, rows), rng.random(rows))
    loss, prompt = rng.random(rows) * 3, rng.integers(-3, prompts, rows)
    risk, kept = prompt_curves(u, loss, prompt, GRID)
    for row, name in enumerate(np.unique(prompt)):
        mine = prompt == name
        for column, threshold in enumerate(GRID):
            keep = u[mine] <= threshold
            assert risk[row, column] == pytest.approx(np.mean(keep * loss[mine]))
            assert kept[row, column] == pytest.approx(np.mean(keep))
    sums = risk_sums(u, loss, prompt, GRID)
    np.testing.assert_allclose(sums.risk, risk.sum(0), atol=1e-12)
    assert sums.prompts == len(risk)


def test_vectors_of_clients_add_up() -> None:
    u, loss, prompt = simulated(30, 10, 0)
    whole = risk_sums(u, loss, prompt, GRID)
    half = prompt < 11
    first = risk_sums(u[half], loss[half], prompt[half], GRID)
    second = risk_sums(u[~half], loss[~half], prompt[~half], GRID)
    pooled = RiskSums.from_vector(first.as_vector() + second.as_vector())
    np.testing.assert_allclose(pooled.risk, whole.risk, atol=2 * UNIT)
    assert pooled.prompts == 30
    for bad in ([1.0], [1.0, np.nan, 0.0], [-1.0, 0.0, 0.0], [1.0, 5.0, -1.0], [[1.0, 2.0, 3.0]]):
        with pytest.raises(ValueError, match="risk sums"):
            RiskSums.from_vector(bad)


@given(st.lists(st.floats(0, 30), min_size=1, max_size=40), st.integers(0, 99))
def test_a_curve_is_sent_in_whole_numbers_that_never_flatter(steps: list[float], n: int) -> None:
    curve = np.cumsum(steps)
    vector = RiskSums(curve, float(n)).as_vector()
    assert np.array_equal(vector, np.round(vector)) and (vector >= 0).all()
    read = RiskSums.from_vector(vector)
    assert (read.risk >= curve - 1e-9).all() and (read.risk <= curve + UNIT).all()
    assert read.prompts == n


def test_conformal_threshold_by_hand() -> None:
    grid = np.array([0.1, 0.2, 0.3, 0.4])
    sums = np.array([0.0, 0.5, 0.9, 3.0])
    # n = 19, alpha = .1: (sum + 1) / 20 <= .1 means sum <= 1.
    assert conformal_threshold(sums, 19, grid, 0.1) == 0.3
    # n = 9: sum <= 0.
    assert conformal_threshold(sums, 9, grid, 0.1) == 0.1
    assert conformal_threshold(sums, 8, grid, 0.1) == ESCALATE_ALL
    assert conformal_threshold(sums, 0, grid, 0.1) == ESCALATE_ALL
    # Audits at 1/2: bound 2, so n = 19 leaves room for 0 only.
    assert conformal_threshold(sums, 19, grid, 0.1, bound=2.0) == 0.1
    # A dip after a violation is not an invitation.
    assert conformal_threshold(np.array([0.0, 2.0, 0.5, 0.5]), 19, grid, 0.1) == 0.1


def test_binomial_cdf_equals_scipy() -> None:
    for trials in (1, 7, 100, 5_000):
        for probability in (1e-4, 0.01, 0.3, 0.99):
            np.testing.assert_allclose(
                binomial_cdf(trials, probability),
                stats.binom.cdf(np.arange(trials + 1), trials, probability),
                rtol=1e-9,
                atol=1e-300,
            )


def test_hoeffding_bentkus_equals_its_definition() -> None:
    risks = np.array([0.0, 0.004, 0.01, 0.05, 0.2, 1.0])
    for n in (50, 1000):
        for alpha in (0.01, 0.1):
            expected = []
            for risk in risks:
                low = min(risk, alpha)
                entropy = (low * np.log(low / alpha) if low else 0.0) + (1 - low) * np.log(
                    (1 - low) / (1 - alpha)
                )
                tail = stats.binom.cdf(np.ceil(n * risk), n, alpha)
                expected.append(min(np.exp(-n * entropy), np.e * tail, 1.0))
            np.testing.assert_allclose(hoeffding_bentkus(risks, n, alpha), expected, rtol=1e-9)
    assert not hoeffding_bentkus(risks, 10, 1.0).any()


@settings(max_examples=25, deadline=None)
@given(alpha=st.floats(0.02, 0.6), n=st.integers(5, 80), level=st.sampled_from([0.05, 0.1, 0.3]))
def test_p_value_is_super_uniform_for_bernoulli_losses(alpha: float, n: int, level: float) -> None:
    # At true risk = alpha exactly, P(p <= level) <= level; exact, by enumerating the binomial.
    outcomes = np.arange(n + 1)
    p_values = hoeffding_bentkus(outcomes / n, n, alpha)
    probability = stats.binom.pmf(outcomes, n, alpha)
    assert probability[p_values <= level].sum() <= level + 1e-12


@settings(max_examples=40, deadline=None)
@given(
    # SciPy's own binomial overflows at risks like 1e-308.
    risks=st.lists(st.floats(0, 1).map(lambda risk: round(risk, 9)), min_size=2, max_size=6),
    each=st.integers(1, 12),
    level=st.sampled_from([0.05, 0.3]),
)
def test_p_value_is_super_uniform_for_clients_that_differ(
    risks: list[float], each: int, level: float
) -> None:
    """As many coins of each client, or texts drawn without replacement from pools of 12; exact."""
    for coins in (True, False):
        probs, mean = np.ones(1), []
        for risk in risks:
            wrong = risk if coins else round(risk * 12) / 12
            mean.append(wrong)
            k = np.arange(each + 1)
            part = (
                stats.binom.pmf(k, each, wrong)
                if coins
                else stats.hypergeom.pmf(k, 12, round(wrong * 12), each)
            )
            probs = np.convolve(probs, part)
        alpha, n = float(np.mean(mean)), each * len(risks)
        if not 1e-6 < alpha < 1 - 1e-6:
            continue
        p_values = hoeffding_bentkus(np.arange(n + 1) / n, n, alpha)
        assert probs[p_values <= level].sum() <= level + 1e-9


def test_learn_then_test_stops_at_the_first_failure() -> None:
    grid = np.array([0.1, 0.2, 0.3, 0.4])
    # Mean risks .00, .01, .30, .00 of 500 prompts.
    sums = np.array([0.0, 5.0, 150.0, 0.0])
    assert learn_then_test(sums, 500, grid, 0.05, 0.1) == 0.2
    assert learn_then_test(sums, 10, grid, 0.05, 0.1) == ESCALATE_ALL
    # Per candidate: the second one was not measured yet.
    assert learn_then_test(sums, np.array([500.0, 0.0, 500.0, 500.0]), grid, 0.05, 0.1) == 0.1
    # Everything passes.
    assert learn_then_test(np.zeros(4), 500, grid, 0.05, 0.1) == 0.4


def test_high_probability_is_more_careful_and_bounds_cost() -> None:
    u, loss, prompt = simulated(400, 20, 5)
    grid = threshold_grid(128)
    sums = risk_sums(u, loss, prompt, grid)
    expected = conformal_threshold(sums.risk, sums.prompts, grid, 0.1)
    careful = learn_then_test(sums.risk, sums.prompts, grid, 0.1, 0.05)
    audited = conformal_threshold(sums.risk, sums.prompts, grid, 0.1, bound=10.0)
    assert 0 < careful < expected
    assert 0 < audited < expected


def test_conformal_risk_is_controlled_and_not_wasteful() -> None:
    # 400 splits of fresh prompts. The mean of 400 test risks has an SD below .05 / sqrt(400) =
    # .0025 (a split's risk stays within alpha +- .05), so alpha + .01 is four of them: false
    # alarm below 1e-4.
    alpha, grid = 0.1, threshold_grid(128)
    risks = []
    for split in range(400):
        u, loss, prompt = simulated(160, 10, 1000 + split)
        risk, _ = prompt_curves(u, loss, prompt, grid)
        threshold = conformal_threshold(risk[:80].sum(0), 80, grid, alpha)
        risks.append(float(risk_at(risk[80:], grid, np.full(80, threshold)).mean()))
    assert alpha - 0.03 < np.mean(risks) <= alpha + 0.01


def test_learn_then_test_violations_stay_within_delta() -> None:
    # Truth from 200,000 prompts; 300 calibrations at delta = .1. Allowed count is the .9999
    # quantile of Bin(300, .1): false alarm at most 1e-4.
    alpha, delta, grid = 0.1, 0.1, threshold_grid(128)
    sums = risk_sums(*simulated(200_000, 10, 1), grid)
    truth = sums.risk / sums.prompts
    violations = 0
    for split in range(300):
        sample = risk_sums(*simulated(150, 10, 5_000 + split), grid)
        threshold = learn_then_test(sample.risk, sample.prompts, grid, alpha, delta)
        violations += float(risk_at(truth[None], grid, np.array([threshold]))[0]) > alpha
    assert violations <= stats.binom.ppf(0.9999, 300, delta)


def test_grid_is_ascending_and_dense_at_the_ends() -> None:
    grid = threshold_grid(256)
    assert grid[0] == 0 and grid[-1] == 1 and len(grid) == 256
    steps = np.diff(grid)
    assert (steps > 0).all() and steps[1] < steps[128] / 100


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": 1.0}, "alpha"),
        ({"bound": 0.0}, "bound"),
        ({"bound": np.inf}, "bound"),
        ({"grid": np.array([0.5, 0.5])}, "grid"),
        ({"sums": np.zeros(3)}, "sums"),
        ({"sums": np.array([0.0, np.nan])}, "sums"),
        ({"prompts": -1.0}, "prompts"),
        ({"prompts": np.nan}, "prompts"),
        ({"delta": 0.0}, "delta"),
    ],
)
def test_bad_arguments_are_refused_by_name(change: dict[str, object], named: str) -> None:
    arguments: dict[str, object] = {
        "sums": np.zeros(2),
        "prompts": 10.0,
        "grid": np.array([0.5, 1.0]),
        "alpha": 0.1,
        "bound": 1.0,
    }
    with pytest.raises(ValueError, match=named):
        learn_then_test(**(arguments | {"delta": 0.1} | change))  # type: ignore[arg-type]
    if named != "delta":
        with pytest.raises(ValueError, match=named):
            conformal_threshold(**(arguments | change))  # type: ignore[arg-type]


@pytest.mark.parametrize("risk", [0.0, 0.03, 0.4])
def test_the_bound_is_the_least_risk_that_is_rejected(risk: float) -> None:
    bound = risk_bound(risk, 80, 0.05)
    p_values = [hoeffding_bentkus(np.array([risk]), 80, bound + by)[0] for by in (-1e-4, 1e-4)]
    assert p_values[0] > 0.05 >= p_values[1]
    assert risk_bound(1.0, 80, 0.05) == 1.0
    # Of draws at a true risk, the bound is below it in at most one of twenty.
    means = np.random.default_rng(0).binomial(80, 0.1, 4000) / 80
    below = {mean: risk_bound(mean, 80, 0.05) < 0.1 for mean in np.unique(means)}
    assert np.mean([below[mean] for mean in means]) <= 0.05


def test_tokens_and_their_prompts_are_flat_and_as_many() -> None:
    with pytest.raises(
        ValueError, match=r"flat and of one length, got shapes \[\(3, 2\), \(3, 2\)"
    ):
        risk_sums(np.zeros((3, 2)), np.zeros((3, 2)), np.arange(3), threshold_grid(8))
