import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hlm.truncation.k_star import k_star, k_star_online, uncertainty_scale
from tests.hlm.truncated_probs import deviations, random_probs, scale


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
    x = random_probs(seed, vocab, sharpness)
    chance = torch.tensor([x_d], dtype=torch.float64)
    rejection = torch.tensor([beta_d], dtype=torch.float64)
    found = k_star_online(torch.from_numpy(x)[None], chance, rejection, theta).item()
    ratios = [deviation / scale(x_d, beta_d) for deviation in deviations(x)]
    # the two sums round differently, so ratios within 1e-9 of the limit may fall either way
    strict = 1 + next((i for i, ratio in enumerate(ratios) if ratio <= theta - 1e-9), vocab - 2)
    loose = 1 + next(i for i, ratio in enumerate(ratios) if ratio <= theta + 1e-9)
    assert loose <= found <= strict


def test_rows_are_independent_and_order_does_not_matter():
    probs = np.stack([random_probs(seed, 50, 0.5 + seed) for seed in range(6)])
    limits = torch.linspace(0, 0.8, 6).double()
    together = k_star(torch.from_numpy(probs), limits)
    for row in range(6):
        shuffled = np.random.default_rng(row).permutation(probs[row])
        assert k_star(torch.from_numpy(shuffled)[None], limits[row : row + 1]) == together[row]


def test_large_vocabularies_equal_one_full_sort():
    # the definition again, by sorting everything, where brute force would take minutes
    for seed, sharpness in enumerate([0.001, 0.1, 1.0, 3.0, 30.0]):
        x = np.sort(random_probs(seed, 5000, sharpness))[::-1]
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
def test_uniform_distribution_has_k_star_one(vocab, theta):
    probs = torch.full((1, vocab), 1 / vocab).double()
    assert k_star_online(probs, probs[:, 0], torch.tensor([0.5]), theta).item() == 1


def test_nothing_allowed_uploads_all_that_differs():
    probs = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.7, 0.1, 0.1, 0.1]]).double()
    probs /= probs.sum(-1, keepdim=True)
    assert k_star(probs, torch.zeros(2)).tolist() == [3, 1]
    assert k_star(torch.ones(1, 1).double(), torch.zeros(1)).tolist() == [1]
    assert k_star(torch.zeros(0, 4).double(), torch.zeros(0)).tolist() == []


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
    probs = torch.tensor([[0.5, 0.5]]).double()
    with pytest.raises(ValueError, match=message):
        k_star_online(probs, torch.tensor([x_d]), torch.tensor([beta_d]), theta)
