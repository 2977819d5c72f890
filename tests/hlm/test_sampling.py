import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from hlm.sampling import (
    Sampling,
    check_probs,
    checked_top_token,
    distribution,
    draw,
    probability_of,
    top_token,
)


def test_greedy_distribution_is_one_hot_on_lowest_id_of_ties():
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]], dtype=torch.bfloat16)
    expected = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    assert torch.equal(distribution(logits, Sampling("greedy")), expected)
    assert top_token(logits).tolist() == [1, 0]


def test_sampled_distribution_is_softmax_at_temperature():
    logits = torch.tensor([[0.3, -1.0, 2.0, -torch.inf]])
    result = distribution(logits, Sampling("sampled", temperature=0.7))
    assert torch.allclose(result, torch.softmax(logits.double() / 0.7, -1), atol=1e-15)
    assert result.dtype == torch.float64
    assert result[0, 3] == 0


def test_tiny_temperature_does_not_overflow():
    result = distribution(torch.tensor([[1e4, 0.0, -1e4]]), Sampling("sampled", temperature=1e-300))
    assert result.tolist() == [[1.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.4, 1), (0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (1.0, 4)]
)
def test_top_p_keeps_the_token_that_crosses_the_boundary(top_p, kept):
    probabilities = torch.tensor([[0.2, 0.5, 0.05, 0.25]], dtype=torch.float64)
    # 0.5 + 0.25 = 0.75 < 0.79 keeps the third; the boundary of each case is strict
    result = distribution(probabilities.log(), Sampling("sampled", top_p=top_p))
    ordered = [0.5, 0.25, 0.2, 0.05]
    mass, expected = 0.0, 0
    for probability in ordered:
        if mass < top_p - 1e-12:
            expected += 1
        mass += probability
    assert int((result > 0).sum()) == expected
    assert expected >= kept
    assert torch.allclose(result.sum(-1), torch.ones(1, dtype=torch.float64))
    survivors = result[0][result[0] > 0]
    assert torch.allclose(
        survivors / survivors.sum(), probabilities[0][result[0] > 0] / sum(ordered[:expected])
    )


def test_top_p_never_keeps_nothing():
    result = distribution(torch.zeros(1, 5), Sampling("sampled", top_p=1e-9))
    assert result.tolist() == [[1.0, 0.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    "bad", [{"temperature": 0.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.1}]
)
def test_sampling_refuses_what_is_out_of_range(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Sampling("sampled", **bad)


def test_sampling_refuses_unknown_decoding():
    with pytest.raises(ValueError, match="decoding"):
        Sampling("beam")


@pytest.mark.parametrize(
    "row", [[0.0, float("nan")], [float("inf"), 0.0], [-float("inf"), -float("inf")]]
)
def test_distribution_refuses_logits_without_a_distribution(row):
    with pytest.raises(ValueError, match="logits"):
        distribution(torch.tensor([row]), Sampling("sampled"))


def test_draw_inverts_the_cumulative_distribution():
    table = torch.tensor([[0.2, 0.0, 0.3, 0.5]], dtype=torch.float64)
    points = torch.tensor([[0.0, 0.1999, 0.2001, 0.4999, 0.5001, 1 - 2**-53]], dtype=torch.float64)
    assert draw(table, points).tolist() == [[0, 0, 2, 2, 3, 3]]


def test_draw_near_one_stays_off_impossible_tokens():
    # rounding carries (1 - 2**-53) * total up to the total itself for totals just above 1
    table = torch.tensor([[1.0 + 2**-52, 0.0, 0.0]], dtype=torch.float64)
    assert draw(table, torch.tensor([1 - 2**-53], dtype=torch.float64)).tolist() == [0]
    assert draw(table, torch.tensor([1.0], dtype=torch.float64)).tolist() == [0]


@settings(max_examples=200, deadline=None)
@given(
    st_numpy.arrays(
        np.float64, st.integers(1, 12), elements=st.sampled_from([0.0, 1e-320, 1e-17, 0.1, 1.0])
    ),
    st.floats(0, 1),
)
def test_draw_never_returns_a_token_of_probability_zero(weights, uniform):
    table = torch.from_numpy(weights).unsqueeze(0)
    point = torch.tensor([uniform], dtype=torch.float64)
    if not weights.sum() > 0:
        with pytest.raises(ValueError, match="probs"):
            draw(table, point)
        return
    assert weights[draw(table, point).item()] > 0


def test_draw_takes_float32_distributions_and_no_rows():
    assert draw(torch.tensor([[0.0, 1.0]]), torch.tensor([0.999])).tolist() == [1]
    assert draw(torch.zeros(0, 3), torch.zeros(0)).shape == (0,)


def test_draw_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="uniforms"):
        draw(torch.ones(2, 3), torch.zeros(3))


@pytest.mark.parametrize("row", [[0.5, 0.4], [1.5, -0.5], [float("nan"), 1.0]])
def test_what_is_no_distribution_is_refused(row):
    with pytest.raises(ValueError, match="target"):
        check_probs("target", torch.tensor([row]))


@pytest.mark.parametrize("temperature", [1.0, 0.3, 7.0, 1e-300])
def test_probability_of_a_token_is_its_entry_in_the_distribution(temperature):
    logits = torch.from_numpy(np.random.default_rng(2).normal(size=(5, 40)) * 4).float()
    logits[0, 3] = -torch.inf
    tokens = torch.tensor([3, 0, 1, 39, 7])
    expected = distribution(logits, Sampling("sampled", temperature))[torch.arange(5), tokens]
    found = probability_of(logits, tokens, temperature)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, atol=1e-15, rtol=1e-13)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_the_top_token_of_no_distribution_is_refused(bad):
    logits = torch.zeros(2, 3)
    logits[1, 1] = bad
    with pytest.raises(ValueError, match="finite maximum"):
        checked_top_token(logits)
    with pytest.raises(ValueError, match="finite maximum"):
        probability_of(logits, torch.tensor([0, 0]), 1.0)
    with pytest.raises(ValueError, match="finite maximum"):
        checked_top_token(torch.full((1, 3), -torch.inf))
    with pytest.raises(ValueError, match="must be"):
        checked_top_token(torch.zeros(3))
