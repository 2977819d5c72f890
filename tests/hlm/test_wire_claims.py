"""Every verifier decides the same through bytes as it does in memory."""

import numpy as np
import pytest
import torch

from hlm.randomness import DrawKeys
from hlm.verification import VERIFIERS, Claim, Verdict
from hlm.wire import (
    BitReader,
    BitWriter,
    Reply,
    Request,
    Rows,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)
from hlm.wire.weights import read_dense

ROWS, VOCAB = 12, 300


def laws(seed: int, greedy: bool) -> tuple[torch.Tensor, torch.Tensor, DrawKeys]:
    random = torch.Generator().manual_seed(seed)
    device = torch.softmax(3 * torch.randn(ROWS, VOCAB, generator=random, dtype=torch.float64), -1)
    noise = torch.randn(ROWS, VOCAB, generator=random, dtype=torch.float64)
    target = torch.softmax(device.log() + noise, -1)
    if seed % 2:  # point masses, whose weight is all there is
        device[0] = torch.eye(VOCAB, dtype=torch.float64)[5]
        target[0] = torch.eye(VOCAB, dtype=torch.float64)[6]
    if greedy:
        device = torch.eye(VOCAB, dtype=torch.float64)[device.argmax(-1)]
        target = torch.eye(VOCAB, dtype=torch.float64)[target.argmax(-1)]
    sessions = np.arange(ROWS, dtype=np.uint64)
    return device, target, DrawKeys(seed, sessions, np.arange(ROWS, dtype=np.int64) + 40)


def request_for(name: str, claim: Claim) -> Request:
    nothing, index = np.zeros(ROWS, np.int64), np.arange(ROWS)
    counts, weights, support = claim.entries()
    rows = Rows(
        index, 40 + index, nothing, nothing[:0], claim.tokens.numpy(),
        counts=counts, weights=weights, support=support,
    )  # fmt: skip
    return Request(name, VOCAB, rows, decoding="sampled", bits=VERIFIERS[name].bits)


def dense(reply: Reply) -> torch.Tensor | None:
    if not len(reply.target_support):
        return None
    target = torch.zeros(ROWS, VOCAB, dtype=torch.int64)
    owners = np.repeat(np.arange(ROWS), reply.target_counts)
    target[owners, reply.target_support] = torch.from_numpy(reply.target_weights)
    return target


def test_weights_said_to_hold_a_lone_one_may_hold_none() -> None:
    writer = BitWriter()
    writer.flag(True)
    writer.bits([0, 0])
    writer.array(np.array([1, 2, 3]), 8)
    weights = read_dense(BitReader(writer.getvalue()), np.array([1, 2]), 8)
    assert weights.tolist() == [1, 2, 3]


@pytest.mark.parametrize("name", VERIFIERS)
@pytest.mark.parametrize("seed", range(4))
def test_a_verifier_works_over_the_wire(name: str, seed: int) -> None:
    device, target, keys = laws(seed, greedy=name == "greedy")
    verifier = VERIFIERS[name]()
    draft = verifier.draft(device, keys)
    in_memory = verifier.decide(target, draft.claim, keys)

    request = request_for(name, draft.claim)
    arrived = decode_request(encode_request(request))
    rows = arrived.rows
    claim = Claim.of_entries(rows.drafts, rows.counts, rows.weights, rows.support)
    verdict = verifier.decide(target, claim, keys)
    tokens, sent = verdict.tokens.numpy(), verdict.target_weights
    parts = [] if sent is None else [weights.nonzero()[:, 0] for weights in sent]
    reply = Reply(
        np.zeros(ROWS, np.int64),
        verdict.accepted.numpy(),
        tokens,
        target_counts=np.array([len(part) for part in parts]),
        target_support=np.concatenate([tokens[:0], *parts]),
        target_weights=np.concatenate(
            [tokens[:0], *(sent[row, part] for row, part in enumerate(parts))]
        ),
    )
    answer = decode_reply(encode_reply(reply, arrived), request)
    heard = Verdict(
        torch.from_numpy(answer.accepted), torch.from_numpy(answer.tokens), dense(answer)
    )

    assert torch.equal(heard.accepted, in_memory.accepted)
    assert torch.equal(heard.tokens, in_memory.tokens)
    expected = verifier.finish(draft, in_memory, keys)
    assert torch.equal(verifier.finish(draft, heard, keys), expected)
    assert bool((~in_memory.accepted).any())  # or nothing but acceptance was tried
