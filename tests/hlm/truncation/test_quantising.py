import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hlm.truncation.quantising import probs_from_weights, quantise, quantise_dithered


def probs(largest_vocab=40):
    """Distributions of every kind: flat, peaked, with zeros."""
    return (
        st.tuples(
            st.integers(1, largest_vocab), st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 5, 30])
        )
        .map(
            lambda seed: (
                np.exp(np.random.default_rng(seed[1]).normal(size=seed[0]) * seed[2])
                * (np.random.default_rng(seed[1] + 1).random(seed[0]) < 0.8)
            )
        )
        .filter(lambda weights: weights.sum() > 0)
        .map(lambda weights: torch.from_numpy(weights / weights.sum()).unsqueeze(0))
    )


@settings(max_examples=200, deadline=None)
@given(probs(), st.integers(1, 24))
def test_quantised_weights_sum_exactly_and_stay_within_one(table, bits):
    weights = quantise(table, bits)
    assert weights.dtype == torch.int64
    assert int(weights.sum()) == 2**bits
    assert int(weights.min()) >= 0
    assert float((weights - table * 2**bits).abs().max()) < 1 + 1e-6
    assert not bool(((table == 0) & (weights > 0)).any())
    restored = probs_from_weights(weights, bits)
    assert float(restored.sum()) == 1.0
    assert torch.equal(quantise(restored, bits), weights)


def test_largest_remainders_by_hand():
    table = torch.tensor([[0.3, 0.3, 0.4], [1.0, 0.0, 0.0]], dtype=torch.float64)
    # 8 * .3 = 2.4, 8 * .4 = 3.2: one unit is missing and the first of the tied .4 gets it
    assert quantise(table, 3).tolist() == [[3, 2, 3], [8, 0, 0]]


@settings(max_examples=100, deadline=None)
@given(probs(), st.integers(1, 24), st.sampled_from([2**-53, 0.25, 0.5, 1 - 2**-53]))
def test_dithered_weights_sum_exactly_and_stay_within_one(table, bits, dither):
    weights = quantise_dithered(table, bits, torch.tensor([dither], dtype=torch.float64))
    assert int(weights.sum()) == 2**bits
    assert int(weights.min()) >= 0
    assert float((weights - table * 2**bits).abs().max()) < 1 + 1e-6
    assert not bool(((table == 0) & (weights > 0)).any())


def test_dithered_weights_are_unbiased():
    table = torch.tensor([[0.013, 0.4, 0.0, 0.587]], dtype=torch.float64)
    grid = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    weights = quantise_dithered(table.expand(10_000, -1), 4, grid).double()
    # the mean over a grid of dithers differs from the integral by at most a grid step per edge
    assert float((weights.mean(0) - table[0] * 16).abs().max()) <= 2e-4


@pytest.mark.parametrize("bits", [0, 25])
def test_quantise_refuses_bits(bits):
    with pytest.raises(ValueError, match="bits"):
        quantise(torch.ones(1, 1), bits)


def test_weights_with_another_sum_are_refused():
    with pytest.raises(ValueError, match="weights"):
        probs_from_weights(torch.tensor([[3, 4]]), 3)
    with pytest.raises(ValueError, match="weights"):
        probs_from_weights(torch.tensor([[9, -1]]), 3)
