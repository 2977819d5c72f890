"""Numpy's halves of drafting and of uncertainty say what PyTorch's say."""

import numpy as np
import pytest
import torch

from clients.decoding.drafting import RouterConfig, draft_step
from hlm import lean
from hlm.measures import MEASURES
from hlm.randomness import DrawKeys, Purpose, uniform_matrix, uniforms
from hlm.sampling import Sampling, distribution, draw
from hlm.verification import VERIFIERS

ROWS, VOCAB = 40, 300
ROUNDING = 1e-12


@pytest.fixture(scope="module")
def logits():
    found = np.random.default_rng(3).normal(0, 3, (ROWS, VOCAB)).astype(np.float32)
    found[3, :] = -np.inf
    found[3, 7] = 2.0
    found[4, 5] = found[4, 9] = 40.0  # a tie at the top
    return found


@pytest.fixture(scope="module")
def keys():
    return DrawKeys(5, np.arange(ROWS), np.arange(ROWS))


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.01, 1.0), (1.7, 0.8)])
def test_distributions_are_the_same(logits, temperature, top_p):
    expected = distribution(torch.from_numpy(logits), Sampling("sampled", temperature, top_p))
    found = lean.distribution(logits, temperature, top_p)
    assert np.abs(found - expected.numpy()).max() < ROUNDING


def test_draws_are_the_same(logits, keys):
    probs = lean.distribution(logits, 1.3)
    numbers = uniform_matrix(keys, Purpose.DRAFT, 20)
    numbers[:, 0] = 1 - 2.0**-53  # the last possible token, and none of probability 0
    expected = draw(torch.from_numpy(probs), torch.from_numpy(numbers))
    assert (lean.draw(probs, numbers) == expected.numpy()).all()


@pytest.mark.parametrize("name", MEASURES)
def test_measures_are_the_same(logits, keys, name):
    kind, draft = MEASURES[name], logits.argmax(axis=1)
    given = {"draft": draft, "temperature": 1.4}
    given["uniforms"] = uniform_matrix(keys, Purpose.UNCERTAINTY, 20)
    ours = kind.load("hlm.lean")(logits, **{one: given[one] for one in kind.takes})
    given |= {"draft": torch.from_numpy(draft), "uniforms": uniforms(keys, Purpose.UNCERTAINTY, 20)}
    theirs = kind.load()(torch.from_numpy(logits), **{one: given[one] for one in kind.takes})
    assert np.abs(ours - theirs.numpy()).max() < ROUNDING
    assert 0 <= ours.min() <= ours.max() <= 1


@pytest.mark.parametrize("verifier", ["greedy", "coupled"])
def test_drafted_steps_are_the_same(logits, verifier):
    sampling = Sampling(VERIFIERS[verifier].decoding, 1.2, 0.9)
    places = np.arange(ROWS), np.arange(ROWS)
    measures = {
        torch.from_numpy: lambda logits, draft, keys: MEASURES["entropy"].load()(logits),
        np.asarray: lambda logits, draft, keys: lean.entropy(logits),
    }
    theirs, ours = (
        draft_step(
            RouterConfig(sampling, measure, 1, 2), VERIFIERS[verifier](), kind(logits), *places
        )
        for kind, measure in measures.items()
    )
    assert isinstance(ours.draft.tokens, np.ndarray)
    assert (ours.draft.tokens == theirs.draft.tokens.numpy()).all()
    assert (ours.draft.claim.tokens == ours.draft.tokens).all()
    assert np.abs(ours.draft.probabilities - theirs.draft.probabilities.numpy()).max() < 1e-6
    assert np.abs(ours.probability - theirs.probability).max() < 1e-6
    assert np.abs(ours.uncertainty - theirs.uncertainty).max() < ROUNDING


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_logits_are_refused(logits, bad):
    wrong = logits.copy()
    wrong[2, 4] = bad
    with pytest.raises(ValueError, match="finite maximum"):
        lean.distribution(wrong)
