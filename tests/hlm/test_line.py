import numpy as np
import pytest

from hlm.line import DegenerateLineError, LineSums, UncertaintyLine


def tokens(seed, count):
    generator = np.random.default_rng(seed)
    u = generator.random(count)
    beta = np.clip(0.8 * u - 0.1 + generator.normal(size=count) * 0.1, 0, 1)
    return u, beta


def test_pooled_sums_give_ordinary_least_squares():
    parts = [tokens(seed, 20 + 7 * seed) for seed in range(5)]
    pooled = LineSums()
    for u, beta in parts:
        pooled = pooled + LineSums.of(u, beta)
    line = pooled.fit()
    u, beta = (np.concatenate(column) for column in zip(*parts, strict=True))
    slope, intercept = np.polyfit(u, beta, 1)
    assert line.slope == pytest.approx(slope, abs=1e-10)
    assert line.intercept == pytest.approx(intercept, abs=1e-10)
    assert line.lower_share == pytest.approx(np.mean(beta > 0))


def test_thresholds_of_the_published_line():
    line = UncertaintyLine(0.815, -0.066, 0.2845)
    assert line.risk_averse == pytest.approx(0.081, abs=5e-4)
    assert line.risk_prone == pytest.approx(0.43, abs=5e-3)


def test_thresholds_stay_inside_zero_and_one():
    assert UncertaintyLine(1.0, 0.5, 0.2).risk_averse == 0.0
    assert UncertaintyLine(0.1, -0.5, 1.0).risk_prone == 1.0


def test_arrays_round_trip():
    sums = LineSums.of(*tokens(3, 30))
    assert LineSums.from_array(sums.to_array()) == sums


@pytest.mark.parametrize(
    ("u", "beta"),
    [([], []), ([0.5], [0.5]), ([0.4, 0.4, 0.4], [0.1, 0.2, 0.3]), ([0.1, 0.9], [0.9, 0.1])],
)
def test_sums_without_a_rising_line_are_named(u, beta):
    with pytest.raises(DegenerateLineError):
        LineSums.of(np.array(u), np.array(beta)).fit()


@pytest.mark.parametrize("values", [[1.0] * 5, [float("nan")] * 6, [float("inf")] * 6])
def test_bad_arrays_are_refused(values):
    with pytest.raises(ValueError, match="six"):
        LineSums.from_array(np.array(values))


@pytest.mark.parametrize(
    ("u", "beta", "name"),
    [([1.5], [0.5], "uncertainty"), ([0.5], [-0.1], "rejection"), ([0.5, 0.1], [0.1], "tokens")],
)
def test_values_out_of_range_are_refused(u, beta, name):
    with pytest.raises(ValueError, match=name):
        LineSums.of(np.array(u), np.array(beta))
