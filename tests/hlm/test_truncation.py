import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hlm.truncation import (
    FixedCount,
    OfflineBudget,
    OnlineCount,
    k_star,
    k_star_online,
    spread,
    tail_deviation,
    truncate,
    uncertainty_scale,
)


def deviations(x):
    """sum_{i>k} |x_i - xhat_i| for k = 1 ... V by the definition, [V]."""
    ordered = sorted(x, reverse=True)
    vocab = len(ordered)
    result = []
    for count in range(1, vocab + 1):
        tail = ordered[count:]
        mean = sum(tail) / len(tail) if tail else 0.0
        result.append(sum(abs(value - mean) for value in tail))
    return result


def scale(x_d, beta_d):
    return (1 - x_d) * math.log(1 + math.exp(-1)) + x_d * math.log(1 + math.exp(-beta_d))


def random_law(seed, vocab, sharpness):
    weights = np.exp(np.random.default_rng(seed).normal(size=vocab) * sharpness)
    return weights / weights.sum()


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 60),
    st.sampled_from([0.1, 1.0, 4.0]),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.5),
)
def test_online_rule_equals_brute_force(seed, vocab, sharpness, x_d, beta_d, theta):
    x = random_law(seed, vocab, sharpness)
    chance = torch.tensor([x_d], dtype=torch.float64)
    rejection = torch.tensor([beta_d], dtype=torch.float64)
    found = k_star_online(torch.from_numpy(x)[None], chance, rejection, theta).item()
    ratios = [deviation / scale(x_d, beta_d) for deviation in deviations(x)]
    # the two sums round differently, so ratios within 1e-9 of the limit may fall either way
    strict = 1 + next((i for i, ratio in enumerate(ratios) if ratio <= theta - 1e-9), vocab - 2)
    loose = 1 + next(i for i, ratio in enumerate(ratios) if ratio <= theta + 1e-9)
    assert loose <= found <= strict


def test_rows_are_independent_and_order_does_not_matter():
    laws = np.stack([random_law(seed, 50, 0.5 + seed) for seed in range(6)])
    limits = torch.linspace(0, 0.8, 6).double()
    together = k_star(torch.from_numpy(laws), limits)
    for row in range(6):
        shuffled = np.random.default_rng(row).permutation(laws[row])
        assert k_star(torch.from_numpy(shuffled)[None], limits[row : row + 1]) == together[row]


def test_large_vocabularies_equal_one_full_sort():
    # the definition again, by sorting everything, where brute force would take minutes
    for seed, sharpness in enumerate([0.001, 0.1, 1.0, 3.0, 30.0]):
        x = np.sort(random_law(seed, 5000, sharpness))[::-1]
        kept = np.arange(1, 5000)
        mean = x[::-1].cumsum()[::-1][1:] / (5000 - kept)
        deviation = np.array(
            [np.abs(x[count:] - mean[count - 1]).sum() for count in range(1, 5000)]
        )
        for limit in (0.0, 1e-6, 0.001, 0.03, 0.3, 1.0):
            found = k_star(torch.from_numpy(x.copy())[None], torch.tensor([limit])).item()
            loose = 1 + int(np.argmax(deviation <= limit + 1e-9))
            strict = 1 + int(np.argmax(np.append(deviation, -1.0) <= limit - 1e-9))
            assert loose <= found <= max(strict, loose)
            if limit >= 1e-6:
                assert abs(deviation[found - 1] - limit) < 1e-9 or found == loose == strict


@pytest.mark.parametrize("vocab", [2, 3, 1000, 32_000])
@pytest.mark.parametrize("theta", [0.0, 0.1])
def test_uniform_law_has_k_star_one(vocab, theta):
    law = torch.full((1, vocab), 1 / vocab).double()
    assert k_star_online(law, law[:, 0], torch.tensor([0.5]), theta).item() == 1


def test_nothing_allowed_uploads_all_that_differs():
    law = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.7, 0.1, 0.1, 0.1]]).double()
    law /= law.sum(-1, keepdim=True)
    assert k_star(law, torch.zeros(2)).tolist() == [3, 1]
    assert k_star(torch.ones(1, 1).double(), torch.zeros(1)).tolist() == [1]
    assert k_star(torch.zeros(0, 4).double(), torch.zeros(0)).tolist() == []


def test_deviation_falls_with_k_and_equals_the_definition():
    for seed in range(20):
        x = random_law(seed, 30, seed / 5)
        counts = torch.arange(1, 31)
        measured = tail_deviation(torch.from_numpy(x).expand(30, -1), counts).numpy()
        assert np.allclose(measured, deviations(x), atol=1e-12)
        assert np.all(np.diff(measured) <= 1e-12)


def test_scale_as_written():
    x_d = torch.tensor([0.3, 1.0, 0.0], dtype=torch.float64)
    beta_d = torch.tensor([0.6, 0.0, 1.0], dtype=torch.float64)
    expected = [scale(0.3, 0.6), math.log(2), math.log(1 + math.exp(-1))]
    assert uncertainty_scale(x_d, beta_d).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("x_d", "beta_d", "theta", "message"),
    [
        (1.1, 0.0, 0.1, "draft_probability"),
        (0.5, -0.1, 0.1, "rejection"),
        (0.5, float("nan"), 0.1, "rejection"),
        (0.5, 0.1, -0.1, "theta_tv"),
    ],
)
def test_arguments_out_of_range_are_refused(x_d, beta_d, theta, message):
    law = torch.tensor([[0.5, 0.5]]).double()
    with pytest.raises(ValueError, match=message):
        k_star_online(law, torch.tensor([x_d]), torch.tensor([beta_d]), theta)


def test_online_rule_takes_beta_from_the_line():
    law = torch.from_numpy(random_law(1, 40, 2.0))[None]
    rule = OnlineCount(0.05, slope=0.5, intercept=0.1)
    chance = torch.tensor([0.2]).double()
    assert rule.expected_rejection(chance).item() == pytest.approx(0.5)
    expected = k_star_online(law, chance, torch.tensor([0.5]), 0.05)
    assert torch.equal(rule.choose(law, chance), expected)


@pytest.mark.parametrize("theta", [0.0, 0.02, 0.2])
@pytest.mark.parametrize("rows", [1, 4])
def test_offline_mean_never_exceeds_the_budget(theta, rows):
    budget = OfflineBudget(theta)
    ratios = []
    for step in range(30):
        law = torch.from_numpy(
            np.stack([random_law(100 * step + row, 40, 0.3 + step % 4) for row in range(rows)])
        )
        chance = law.amax(-1)
        counts = budget.choose(law, chance)
        rejection = OnlineCount(theta).expected_rejection(chance)
        for row in range(rows):
            ratio = deviations(law[row].tolist())[int(counts[row]) - 1]
            ratios.append(ratio / scale(chance[row].item(), rejection[row].item()))
        assert sum(ratios) / len(ratios) <= theta + 1e-9
        assert budget.mean == pytest.approx(sum(ratios) / len(ratios), abs=1e-9)
    if theta == 0.2 and rows == 1:
        # what easy tokens leave, hard ones use: more than the online rule would allow them
        assert max(ratios) > theta


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 50), st.sampled_from([0.0, 1.0, 20.0]))
def test_truncated_law_is_near_and_a_law(seed, vocab, sharpness):
    generator = np.random.default_rng(seed)
    law = torch.from_numpy(np.stack([random_law(seed + row, vocab, sharpness) for row in range(3)]))
    counts = torch.from_numpy(generator.integers(1, vocab, size=3))
    support, weights = truncate(law, counts)
    truncated = spread(support, weights, counts, vocab)
    assert torch.allclose(truncated.sum(-1), torch.ones(3).double(), atol=1e-12)
    assert int(weights.max()) <= 255
    assert int(weights.min()) >= 0
    for row in range(3):
        count = int(counts[row])
        ids = support[row, :count]
        assert sorted(law[row, ids].tolist()) == sorted(law[row].topk(count).values.tolist())
        assert bool((support[row, count:] == -1).all())
        assert bool((weights[row, count:] == 0).all())
        # largest remainders are within one unit; a point mass gives one unit to the tail
        assert float((truncated[row, ids] - law[row, ids]).abs().max()) <= 1 / 256 + 1e-9


def test_spread_by_hand():
    support = torch.tensor([[4, 1], [2, -1]])
    weights = torch.tensor([[128, 64], [255, 0]])
    law = spread(support, weights, torch.tensor([2, 1]), 5)
    third = 64 / 256 / 3
    tail = 1 / 256 / 4
    expected = [[third, 0.25, third, third, 0.5], [tail, tail, 255 / 256, tail, tail]]
    assert law.tolist() == pytest.approx(np.array(expected))


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
    law = torch.tensor([[0.5, 0.5]]).double()
    for count in (0, 2):
        with pytest.raises(ValueError, match="counts"):
            truncate(law, torch.tensor([count]))
    with pytest.raises(ValueError, match="count"):
        FixedCount(0)
    assert FixedCount(9).choose(law, law[:, 0]).tolist() == [1]
