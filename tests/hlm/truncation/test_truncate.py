import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hlm.truncation.count_rules import FixedCount
from hlm.truncation.truncate import spread, truncate
from tests.hlm.truncated_probs import random_probs


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 50), st.sampled_from([0.0, 1.0, 20.0]))
def test_truncated_distribution_is_near_and_a_distribution(seed, vocab, sharpness):
    generator = np.random.default_rng(seed)
    probs = torch.from_numpy(
        np.stack([random_probs(seed + row, vocab, sharpness) for row in range(3)])
    )
    counts = torch.from_numpy(generator.integers(1, vocab, size=3))
    support, weights = truncate(probs, counts)
    truncated = spread(support, weights, counts, vocab)
    assert torch.allclose(truncated.sum(-1), torch.ones(3).double(), atol=1e-12)
    assert int(weights.max()) <= 255
    assert int(weights.min()) >= 0
    for row in range(3):
        count = int(counts[row])
        ids = support[row, :count]
        assert sorted(probs[row, ids].tolist()) == sorted(probs[row].topk(count).values.tolist())
        assert bool((support[row, count:] == -1).all())
        assert bool((weights[row, count:] == 0).all())
        # largest remainders are within one unit; a point mass gives one unit to the tail
        assert float((truncated[row, ids] - probs[row, ids]).abs().max()) <= 1 / 256 + 1e-9


def test_spread_by_hand():
    support = torch.tensor([[4, 1], [2, -1]])
    weights = torch.tensor([[128, 64], [255, 0]])
    probs = spread(support, weights, torch.tensor([2, 1]), 5)
    third = 64 / 256 / 3
    tail = 1 / 256 / 4
    expected = [[third, 0.25, third, third, 0.5], [tail, tail, 255 / 256, tail, tail]]
    assert probs.tolist() == pytest.approx(np.array(expected))


@pytest.mark.parametrize(
    ("support", "weights", "counts", "message"),
    [
        ([[0, 0]], [[1, 1]], [2], "twice"),
        ([[0, 5]], [[1, 1]], [2], "ids"),
        ([[0, -1]], [[1, 1]], [2], "ids"),
        ([[0, 1]], [[200, 200]], [2], "weights"),
        ([[0, 1]], [[-1, 5]], [2], "weights"),
        ([[0, 1]], [[256, 0]], [2], "weights"),
        ([[0, 1]], [[1, 1]], [3], "counts"),
        ([[0, 1]], [[1, 1]], [0], "counts"),
        ([[0, 1]], [[1]], [1], "fit"),
    ],
)
def test_spread_refuses_what_cannot_be(support, weights, counts, message):
    with pytest.raises(ValueError, match=message):
        spread(torch.tensor(support), torch.tensor(weights), torch.tensor(counts), 5)


def test_counts_out_of_range_are_refused():
    probs = torch.tensor([[0.5, 0.5]]).double()
    for count in (0, 2):
        with pytest.raises(ValueError, match="counts"):
            truncate(probs, torch.tensor([count]))
    with pytest.raises(ValueError, match="count"):
        FixedCount(0)
    assert FixedCount(9).choose(probs, probs[:, 0]).tolist() == [1]
