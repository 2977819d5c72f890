"""Every verifier decides the same through bytes as it does in memory."""

import numpy as np
import pytest
import torch

from hlm.randomness import DrawKeys
from hlm.verification import VERIFIERS
from hlm.wire import (
    Reply,
    Request,
    Row,
    RowReply,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)
from hlm.wire.claims import claim_fields, claim_of, reply_fields, verdict_of

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


def request_for(name: str, claim: object, drafts: torch.Tensor) -> Request:
    nothing = np.zeros(0, dtype=np.int64)
    rows = tuple(
        Row(index, 40 + index, nothing, int(drafts[index]), **claim_fields(claim, index))  # type: ignore
        for index in range(ROWS)
    )
    return Request(name, VOCAB, rows, decoding="sampled", bits=16 if name == "full" else 8)


@pytest.mark.parametrize("name", VERIFIERS)
@pytest.mark.parametrize("seed", range(4))
def test_a_verifier_works_over_the_wire(name: str, seed: int) -> None:
    device, target, keys = laws(seed, greedy=name == "greedy")
    verifier = VERIFIERS[name]()
    draft = verifier.draft(device, keys)
    in_memory = verifier.decide(target, draft.claim, keys)

    request = request_for(name, draft.claim, draft.tokens)
    arrived = decode_request(encode_request(request))
    verdict = verifier.decide(target, claim_of(arrived.rows), keys)
    reply = Reply(tuple(RowReply(**reply_fields(verdict, index)) for index in range(ROWS)))
    answer = decode_reply(encode_reply(reply, arrived), request)
    heard = verdict_of(answer.rows, VOCAB)

    assert torch.equal(heard.accepted, in_memory.accepted)
    assert torch.equal(heard.tokens, in_memory.tokens)
    expected = verifier.finish(draft, in_memory, keys)
    assert torch.equal(verifier.finish(draft, heard, keys), expected)
    assert bool((~in_memory.accepted).any())  # or nothing but acceptance was tried
