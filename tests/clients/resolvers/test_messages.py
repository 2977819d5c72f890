"""Messages hold no more than a server reads, and every row once."""

from __future__ import annotations

import numpy as np
import pytest

from clients.policy import FixedPolicy
from clients.records import TextBatch
from clients.resolvers.messages import LIMITS, messages, whole_texts
from hlm.wire import Limits, Request, decode_request, encode_request
from tests.models import VOCAB, random_model
from tests.routed import build
from tests.wire_rows import Row, following_row, listed, rows_of

NOTHING = np.zeros(0, np.int64)


def sizes(rows, vocab=10, **limits):
    return [part.stop - part.start for part in messages(rows_of(rows), vocab, Limits(**limits))]


def test_rows_tokens_and_weights_are_bounded():
    rows = [Row(number, 4, np.arange(3), 1) for number in range(10)]
    assert sizes(rows) == [10]
    assert sizes(rows, max_rows=4) == [4, 4, 2]
    assert sizes(rows, max_tokens=7) == [2] * 5
    assert sizes(rows, max_tokens=1) == [1] * 10  # the server says what it does not read
    probs = np.full(100, 655)
    claimed = [Row(number, 4, NOTHING, 1, weights=probs) for number in range(10)]
    assert sizes(claimed, 100, max_weights=350) == [3, 3, 3, 1]


def test_blocks_stay_together():
    rows = []
    for number in range(6):
        rows.append(Row(number, 4, np.arange(3), 1))
        rows += [following_row(rows[-1], 2)]
        rows += [following_row(rows[-1])]
    assert sizes(rows, max_rows=7) == [6, 6, 6]


@pytest.mark.parametrize("verifier", ["full", "truncated"])
def test_messages_of_large_claims_are_read(verifier):
    vocab = 152_064
    if verifier == "full":
        probs = np.zeros(vocab, np.int64)
        probs[:256] = 256
        claim = {"weights": probs}
    else:
        claim = {"support": np.arange(30_000), "weights": np.zeros(30_000, np.int64)}
    rows = [Row(number, 4, NOTHING, 1, **claim) for number in range(60)]
    parts = list(messages(rows_of(rows), vocab))
    assert len(parts) > 1
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(60))
    bits = 16 if verifier == "full" else 8
    for part in parts[:1]:
        request = Request(verifier, vocab, rows_of(rows[part]), bits=bits, decoding="sampled")
        assert decode_request(encode_request(request), LIMITS) == request


def test_more_texts_than_a_message_holds_are_routed():
    slm, llm = random_model("llama", 1), random_model("llama", 2)
    count = LIMITS.max_rows + 900
    prompts = list(np.random.default_rng(0).integers(1, VOCAB, (count, 2)))
    setup = build(slm, llm, FixedPolicy(kept=False), sessions=512)
    texts, records, traffic = setup.generate(prompts, 1)
    assert (records.token == texts.tokens[:, 2:]).all()
    assert records.stage_counts()["unresolved"] == 0
    assert traffic.messages == 2


def test_the_prefix_comes_once_a_text():
    texts = TextBatch([np.arange(9), np.arange(20, 29)], np.array([5, 6]), given=True)
    rows = [
        Row(5, 2, np.arange(2, 4), 1, quiet=1),
        Row(5, 4, np.arange(4, 7), 1),
        Row(6, 3, np.arange(23, 25), 1),
    ]
    found = listed(whole_texts(texts, np.array([0, 0, 1]), rows_of(rows)))
    assert [row.start for row in found] == [0, 4, 0]
    assert [row.tokens.tolist() for row in found] == [[0, 1, 2, 3], [4, 5, 6], [20, 21, 22, 23, 24]]
    assert [row.quiet for row in found] == [3, 0, 3]
