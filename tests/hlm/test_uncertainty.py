import math

import numpy as np
import pytest
import torch

from hlm.randomness import DrawKeys, Purpose, uniforms
from hlm.uncertainty import closed_form, disagreement, entropy, temperature_sweep


@pytest.fixture
def logits():
    return torch.from_numpy(np.random.default_rng(5).normal(size=(6, 11)) * 2).float()


@pytest.fixture
def draft(logits):
    return logits.argmax(-1)


def numbers(rows, count):
    names = DrawKeys(1, np.arange(rows, dtype=np.uint64), np.zeros(rows, dtype=np.int64))
    return uniforms(names, Purpose.UNCERTAINTY, count)


def test_closed_form_is_one_minus_softmax(logits, draft):
    expected = 1 - torch.softmax(logits.double() / 1.3, -1)[torch.arange(6), draft]
    assert torch.allclose(closed_form(logits, draft, 1.3), expected, atol=1e-15)


def test_disagreement_tends_to_the_closed_form(logits, draft):
    share = disagreement(logits, draft, 0.8, numbers(6, 20_000))
    expected = closed_form(logits, draft, 0.8)
    deviation = (expected * (1 - expected) / 20_000).sqrt()
    # 5 standard deviations on 6 rows: false alarm below 4e-6
    assert bool(((share - expected).abs() <= 5 * deviation + 1e-12).all())


def test_disagreement_is_a_multiple_of_one_over_samples(logits, draft):
    share = disagreement(logits, draft, 1.0, numbers(6, 20)) * 20
    assert torch.equal(share, share.round())


def test_sweep_equals_one_draw_per_temperature(logits, draft):
    points = numbers(6, 20)
    differ = np.zeros(6)
    for row in range(6):
        for step, temperature in enumerate(np.linspace(0, 2, 20)):
            if temperature == 0:
                token = int(logits[row].argmax())
            else:
                scaled = np.exp(logits[row].double().numpy() / temperature)
                cumulative = np.cumsum(scaled / scaled.sum())
                token = int(np.searchsorted(cumulative, points[row, step].item(), side="right"))
            differ[row] += token != int(draft[row])
    assert torch.allclose(temperature_sweep(logits, draft, points), torch.from_numpy(differ / 20))


def test_entropy_runs_from_certain_to_uniform():
    rows = torch.tensor([[0.0, 0.0, 0.0, 0.0], [900.0, 0.0, 0.0, 0.0], [0.0, 0.0, -1e9, -1e9]])
    measured = entropy(rows).tolist()
    assert measured == pytest.approx([1.0, 0.0, math.log(2) / math.log(4)])


def test_all_measures_stay_inside_zero_and_one():
    logits = torch.tensor([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0], [-torch.inf, 0.0, -torch.inf]])
    draft = torch.tensor([0, 2, 1])
    for measured in (
        closed_form(logits, draft, 1.0),
        disagreement(logits, draft, 1.0, numbers(3, 7)),
        temperature_sweep(logits, draft, numbers(3, 7)),
        entropy(logits),
    ):
        assert measured.dtype == torch.float64
        assert bool(((measured >= 0) & (measured <= 1)).all())


def test_shapes_that_do_not_fit_are_refused(logits, draft):
    with pytest.raises(ValueError, match="draft"):
        closed_form(logits, draft[:2])
    with pytest.raises(ValueError, match="temperature"):
        closed_form(logits, draft, 0.0)
    with pytest.raises(ValueError, match="K"):
        disagreement(logits, draft, 1.0, torch.zeros(6, 0))
    with pytest.raises(ValueError, match="K >= 2"):
        temperature_sweep(logits, draft, torch.zeros(6, 1))
    with pytest.raises(ValueError, match="vocab"):
        entropy(torch.zeros(2, 1))
