from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from strategies.aggregation import (
    clip_by_norm,
    cluster_means,
    krum_order,
    median,
    trimmed_mean,
    weighted_mean,
)

UNIT = st.floats(0, 1, width=64)


def test_weighted_mean_by_hand() -> None:
    values = np.array([[1.0, 0.0], [5.0, 4.0]])
    np.testing.assert_allclose(weighted_mean(values, np.array([3.0, 1.0])), [2.0, 1.0])


def test_equation_7_by_hand() -> None:
    # Cluster 0: (3*0.2 + 1*0.6)/4 = 0.3. Cluster 1: 0.9. Cluster 2: no tokens, keeps 0.5.
    values = np.array([[0.2], [0.6], [0.9], [0.1]])
    weights = np.array([3.0, 1.0, 2.0, 0.0])
    clusters = np.array([0, 0, 1, 2])
    result = cluster_means(values, weights, clusters, 4, np.full((4, 1), 0.5))
    np.testing.assert_allclose(result[:, 0], [0.3, 0.9, 0.5, 0.5], rtol=1e-15)


@given(
    st.integers(1, 40).flatmap(
        lambda n: st.tuples(
            arrays(np.float64, (n, 3), elements=UNIT),
            arrays(np.float64, n, elements=st.integers(0, 5).map(float)),
            arrays(np.int64, n, elements=st.integers(0, 4)),
        )
    ),
    st.sampled_from([3, 20]),
)
def test_cluster_means_equal_a_loop(
    case: tuple[np.ndarray, np.ndarray, np.ndarray], width: int
) -> None:
    values, weights, clusters = case
    values = np.tile(values, (1, 7))[:, :width]  # both code paths: few and many parameters
    previous = np.full((5, width), 7.0)
    result = cluster_means(values, weights, clusters, 5, previous)
    for cluster in range(5):
        mine = clusters == cluster
        expected = previous[cluster]
        if weights[mine].sum() > 0:
            expected = (weights[mine, None] * values[mine]).sum(0) / weights[mine].sum()
        np.testing.assert_allclose(result[cluster], expected, rtol=1e-12, atol=1e-15)


@given(arrays(np.float64, st.tuples(st.integers(1, 30), st.just(2)), elements=UNIT))
def test_median_and_trimmed_mean_equal_sorting(values: np.ndarray) -> None:
    ordered = np.sort(values, axis=0)
    count = len(values)
    np.testing.assert_allclose(
        median(values), (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    )
    cut = int(0.2 * count)
    np.testing.assert_allclose(
        trimmed_mean(values, 0.2), ordered[cut : count - cut].mean(0), atol=1e-15
    )


@given(
    arrays(np.float64, 16, elements=UNIT),
    arrays(np.float64, 4, elements=st.floats(-1e6, 1e6)),
)
def test_a_fifth_of_liars_stays_within_the_honest_range(
    honest: np.ndarray, lies: np.ndarray
) -> None:
    """4 of 20 are malicious: median and trimmed mean stay between honest order statistics.

    The bound: with f of n lying, the trimmed mean that cuts at least f at each end and the median
    lie between the smallest and the largest honest value, and the median between the honest
    values of rank n/2 - f and n/2 + 1, whatever the lies are.
    """
    values = np.concatenate([honest, lies])[:, None]
    ordered = np.sort(honest)
    slack = 1e-12
    robust = trimmed_mean(values, 0.2)[0]
    assert ordered[0] - slack <= robust <= ordered[-1] + slack
    assert abs(robust - honest.mean()) <= ordered[-1] - ordered[0] + slack
    assert ordered[5] - slack <= median(values)[0] <= ordered[10] + slack


def test_the_plain_mean_has_no_such_bound() -> None:
    values = np.concatenate([np.full(16, 0.5), np.full(4, 1e6)])[:, None]
    assert weighted_mean(values, np.ones(20))[0] > 1e5


def _krum_reference(values: np.ndarray, malicious: int) -> np.ndarray:
    count = len(values)
    scores = []
    for row in range(count):
        others = np.delete(values, row, axis=0)
        distances = np.sort(((others - values[row]) ** 2).sum(axis=1))
        scores.append(sum(distances[: max(1, count - malicious - 2)]))
    return np.argsort(scores, kind="stable")


def test_krum_equals_the_definition(rng: np.random.Generator) -> None:
    for count, malicious in [(2, 0), (5, 1), (12, 2), (700, 100)]:
        values = rng.normal(size=(count, 3))
        assert krum_order(values, malicious)[0] == _krum_reference(values, malicious)[0]
    np.testing.assert_array_equal(krum_order(values[:1], 1), [0])


def test_krum_chooses_an_honest_value(rng: np.random.Generator) -> None:
    values = np.concatenate([rng.normal(0.5, 0.01, (16, 2)), np.full((4, 2), 9.0)])
    assert set(krum_order(values, 4)[:12]) <= set(range(16))


def test_clip_by_norm(rng: np.random.Generator) -> None:
    deltas = np.concatenate([rng.normal(size=(50, 4)) * 3, np.zeros((1, 4))])
    clipped = clip_by_norm(deltas, 1.0)
    assert np.linalg.norm(clipped, axis=1).max() <= 1 + 1e-12
    short = np.linalg.norm(deltas, axis=1) <= 1
    np.testing.assert_array_equal(clipped[short], deltas[short])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: weighted_mean(np.zeros((2, 1)), np.zeros(2)), "sum to 0"),
        (lambda: weighted_mean(np.zeros((2, 1)), np.array([1.0, -1.0])), "negative"),
        (lambda: weighted_mean(np.zeros((2, 1)), np.ones(3)), "shape"),
        (lambda: weighted_mean(np.zeros((0, 1)), np.ones(0)), "n >= 1"),
        (lambda: trimmed_mean(np.zeros((2, 1)), 0.5), r"\[0, 0.5\)"),
        (lambda: krum_order(np.zeros((2, 1)), -1), "malicious"),
        (lambda: krum_order(np.zeros((20_001, 1)), 1), "20000"),
        (lambda: clip_by_norm(np.zeros((2, 1)), 0.0), "bound"),
        (
            lambda: cluster_means(np.zeros((1, 1)), np.ones(1), np.array([2]), 2, np.zeros((2, 1))),
            "0 to 1",
        ),
        (
            lambda: cluster_means(np.zeros((1, 1)), np.ones(1), np.array([0]), 2, np.zeros((1, 1))),
            "previous",
        ),
    ],
)
def test_bad_input_is_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
