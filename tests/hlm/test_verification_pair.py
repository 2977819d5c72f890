"""Exactness on the built-in models: tokens drawn in real contexts follow the large model.

Four methods in four contexts at a fixed seed, two tests each: every one fails by chance with
probability 1e-6, all together with 3.2e-5.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from fedhlm_app.models.load import load_pair
from hlm.randomness import DrawKeys
from hlm.sampling import Sampling, distribution
from hlm.verification import VERIFIERS
from tests.hlm.verifier_analysis import total_variation

pytestmark = pytest.mark.slow

CORPUS = Path(__file__).resolve().parents[2] / "fedhlm_assets" / "corpus"
SAMPLING = Sampling("sampled", temperature=0.8, top_p=0.95)
DRAWS, BATCH, FALSE_ALARM = 2_000, 500, 1e-6
EXACT = sorted({name for name, cls in VERIFIERS.items() if cls.exact} - {"greedy"})


@pytest.fixture(scope="module")
def real_probs():
    """(x, y) after the first 12 tokens of one news item of each topic."""
    pair = load_pair()
    pairs = []
    for path in sorted(CORPUS.glob("*.jsonl")):
        text = json.loads(path.read_text(encoding="utf-8").splitlines()[0])["text"]
        ids = pair.tokenizer(text, add_special_tokens=False)["input_ids"][:12]
        prefix = torch.tensor([[pair.tokenizer.bos_token_id, *ids]])
        with torch.inference_mode():
            x = distribution(pair.slm(prefix).logits[:, -1], SAMPLING)
            y = distribution(pair.llm(prefix).logits[:, -1], SAMPLING)
        pairs.append((x.clone(), y.clone()))
    assert len(pairs) == 4
    return pairs


def draws(verifier, x, y, first):
    """Tokens of `BATCH` independent sessions in one context, and how many drafts stood."""
    rows = np.arange(first, first + BATCH)
    names = DrawKeys(77, rows, np.full(BATCH, 13))
    xs, ys = x.expand(BATCH, -1), y.expand(BATCH, -1)
    draft = verifier.draft(xs, names)
    verdict = verifier.decide(ys, draft.claim, names)
    return verifier.finish(draft, verdict, names), int(verdict.accepted.sum())


def pooled_chi_square(tokens, expected_probs):
    """Chi-square with the tail pooled, so that every cell expects at least ten."""
    counts = np.bincount(tokens.numpy(), minlength=expected_probs.shape[0])
    chances = expected_probs.numpy()
    assert counts[chances == 0].sum() == 0
    order = np.argsort(-chances)
    expected, observed = chances[order] * counts.sum(), counts[order]
    cut = int((expected >= 10).sum())
    expected = np.append(expected[:cut], expected[cut:].sum())
    observed = np.append(observed[:cut], observed[cut:].sum())
    if expected[-1] < 10:
        expected = np.append(expected[:-2], expected[-2:].sum())
        observed = np.append(observed[:-2], observed[-2:].sum())
    assert len(expected) > 3
    return stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue


@pytest.mark.parametrize("name", EXACT)
def test_tokens_in_real_contexts_follow_the_large_model(name, real_probs):
    for context, (x, y) in enumerate(real_probs):
        verifier = VERIFIERS[name]()
        parts = [draws(verifier, x, y, context * DRAWS + first) for first in range(0, DRAWS, BATCH)]
        tokens = torch.cat([part[0] for part in parts])
        assert pooled_chi_square(tokens, y[0]) > FALSE_ALARM
        # the pair disagrees enough that taking the draft would be caught
        assert total_variation(x, y).item() > 0.1
        rejected = DRAWS - sum(part[1] for part in parts)
        drawn_probs = verifier.draft(x, DrawKeys(0, np.array([0]), np.array([0]))).distribution
        least = total_variation(drawn_probs, y).item()
        # no method rejects less than TV: one-sided at the same false-alarm rate
        assert stats.binomtest(rejected, DRAWS, least, "less").pvalue > FALSE_ALARM


def test_drafts_alone_would_be_caught(real_probs):
    verifier = VERIFIERS["full"]()
    x, y = real_probs[0]
    mixed = torch.where(y > 0, x, 0.0)
    mixed = mixed / mixed.sum(-1, keepdim=True)
    tokens = torch.cat(
        [draws(verifier, mixed, mixed, first)[0] for first in range(0, DRAWS, BATCH)]
    )
    assert pooled_chi_square(tokens, y[0]) < FALSE_ALARM
