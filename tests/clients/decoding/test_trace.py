"""How well the small model foretold a text, in routed texts and in given ones."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from clients.decoding.trace import text_traces, trace_of
from clients.policy import RouterPolicy
from clients.records import TextBatch, Traffic
from tests.models import VOCAB, random_model
from tests.routed import SAMPLED, build, make_prompts


def test_three_numbers_of_a_token() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [50.0, 0.0, 0.0]])
    traces = trace_of(logits, torch.tensor([1, 2]))
    probs = torch.softmax(logits, 1)
    np.testing.assert_allclose(traces[0], [-probs[0, 1].log(), 1 - probs[0, 2], 0], rtol=1e-6)
    # A token the model thought impossible stays finite.
    np.testing.assert_allclose(traces[1], [20, 0, 0], atol=1e-6)
    assert trace_of(logits, torch.tensor([2, 0]))[:, 2].tolist() == [1, 1]


def test_routed_and_given_texts_are_traced_alike() -> None:
    """Features of a step do not depend on whether its text was generated or given."""
    slm, llm = random_model("llama", 1), random_model("llama", 2)
    seen: dict[tuple[int, int], np.ndarray] = {}

    def features(logits, hidden, drafts, positions, tokens, traces):
        for row, length in enumerate(positions):
            seen[(int(tokens[row, 0]), int(length))] = traces[row, :length].copy()
        return np.zeros((len(drafts), 2), np.float32)

    # Scores alternate around the threshold, so that texts mix kept and verified tokens.
    policy = RouterPolicy(0.5, np.zeros(1), lambda _, table: np.arange(len(table)) % 2.0)
    setup = build(slm, llm, policy, SAMPLED)
    setup.router.config = dataclasses.replace(
        setup.router.config, features=features, feature_count=2
    )
    prompts = [np.append(10 + row, p) for row, p in enumerate(make_prompts(VOCAB))]
    prompts[0] = prompts[0][:1]
    texts, records, _ = setup.generate(prompts, 7)
    assert records.kept[records.present].any() and records.escalated[records.present].any()
    whole = [texts.text(row) for row in range(len(prompts))]
    expected = text_traces(slm, whole, texts.tokens.shape[1])
    np.testing.assert_allclose(texts.trace, expected, atol=1e-4)
    routed = dict(seen)
    seen.clear()
    given = TextBatch(whole, np.arange(len(whole)), given=True)
    setup.router.score(given, np.array([len(prompt) for prompt in prompts]), Traffic())
    assert routed.keys() == seen.keys()
    for key, trace in routed.items():
        np.testing.assert_allclose(trace, seen[key], atol=1e-4)
