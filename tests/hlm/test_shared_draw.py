"""Which verdicts are the LLM's own token, whatever was drafted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hlm.randomness import DrawKeys
from hlm.verification import VERIFIERS, plain_verifier, shares_draw

VOCAB, ROWS = 6, 40


@pytest.mark.parametrize("name", VERIFIERS)
def test_with_a_shared_draw_the_verdict_does_not_depend_on_the_draft(name):
    target = torch.from_numpy(np.random.default_rng(0).dirichlet(np.ones(VOCAB), ROWS))
    keys = DrawKeys(3, np.zeros(ROWS, np.int64), np.arange(ROWS))
    verifier, tokens = VERIFIERS[name](), []
    for favoured in range(VOCAB):
        probs = torch.full((ROWS, VOCAB), 0.01, dtype=torch.float64)
        probs[:, favoured] = 1 - 0.01 * (VOCAB - 1)
        draft = verifier.draft(probs, keys)
        tokens.append(verifier.finish(draft, verifier.decide(target, draft.claim, keys), keys))
    same = all(bool((one == tokens[0]).all()) for one in tokens)
    assert same == VERIFIERS[name].shared_draw


@pytest.mark.parametrize("decoding", ["greedy", "sampled"])
def test_the_plain_verifier_asks_for_nothing_but_the_llms_own_token(decoding):
    assert shares_draw(plain_verifier(decoding), decoding)
    draft = VERIFIERS[plain_verifier(decoding)]().draft(
        torch.full((1, VOCAB), 1 / VOCAB, dtype=torch.float64),
        DrawKeys(0, np.zeros(1, np.int64), np.zeros(1, np.int64)),
    )
    assert draft.claim.weight is draft.claim.weights is draft.claim.support is None


def test_every_greedy_verdict_and_no_other_sample_shares_its_draw():
    assert all(shares_draw(name, "greedy") for name in VERIFIERS)
    assert [name for name in VERIFIERS if shares_draw(name, "sampled")] == ["coupled", "greedy"]
