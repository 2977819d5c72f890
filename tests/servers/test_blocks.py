from __future__ import annotations

import numpy as np
import pytest
import torch

from hlm.randomness import DrawKeys, exponentials
from hlm.sampling import Sampling, distribution
from hlm.truncation.quantising import quantise
from hlm.verification.coupled import exponential_race
from hlm.wire import Status, decode_reply, encode_request
from servers.blocks import skipped
from servers.engine.engine import Engine
from servers.llm import LanguageModelService
from tests.asking import IDENTITY, request_of
from tests.models import VOCAB, random_model
from tests.wire_rows import Row, following_row, told

LLM = random_model("llama", 2)
SEED = 11
PREFIX = [5, 9, 2]


def make_service(context: int = 32) -> LanguageModelService:
    return LanguageModelService(Engine(LLM, max_context=context))


def block(drafts, prefix=PREFIX, session=0, start=0, more=False, claims=None, **options):
    """Rows of one block; with `more`, a last one that asks for the token after it."""
    claims = claims or [{}] * len(drafts)
    tokens = np.asarray(prefix, np.int64)
    rows = [Row(session, start, tokens, drafts[0], quiet=len(prefix), **claims[0], **options)]
    for draft, claim in zip(drafts[1:], claims[1:], strict=True):
        rows.append(following_row(rows[-1], draft, **claim))
    return [*rows, following_row(rows[-1])] if more else rows


def ask(service, rows, verifier="greedy", decoding="greedy", feedback=True, **options):
    options = {"seed": SEED, "feedback": feedback, "decoding": decoding, **options}
    request = request_of(verifier, rows, **options)
    return told(decode_reply(service.handle(encode_request(request)), request))


def logits_after(text):
    with torch.inference_mode():
        return LLM(torch.tensor([list(text)])).logits[0, -1:].float()


def keys_at(position, session=0):
    return DrawKeys(SEED, np.array([session], np.uint64), np.array([position]))


def own_token(text, decoding="greedy"):
    if decoding == "greedy":
        return int(logits_after(text).argmax())
    clocks = exponentials(keys_at(len(text)), VOCAB)
    return int(exponential_race(distribution(logits_after(text), Sampling("sampled")), clocks))


def own_text(count, decoding="greedy", prefix=PREFIX):
    text = list(prefix)
    for _ in range(count):
        text.append(own_token(text, decoding))
    return text[len(prefix) :]


@pytest.mark.parametrize(("verifier", "decoding"), [("greedy", "greedy"), ("coupled", "sampled")])
def test_a_block_of_the_models_own_tokens_stands_and_one_more_comes_back(verifier, decoding):
    service, own = make_service(), own_text(4, decoding)
    replies = ask(service, block(own[:3], more=True), verifier, decoding)
    assert [reply.accepted for reply in replies] == [True, True, True, False]
    assert [reply.token for reply in replies] == own
    assert service.engine.stats.passes == 1
    assert service.engine.held((0, 0, IDENTITY)) == len(PREFIX) + 4
    # Each draft has one byte, which says that it is the model's own choice; the last has none.
    assert [len(reply.feedback) for reply in replies] == [1, 1, 1, 0]
    assert all(reply.feedback[0] >> 7 for reply in replies[:3])


@pytest.mark.parametrize("wrong", [0, 1, 2])
@pytest.mark.parametrize(("verifier", "decoding"), [("greedy", "greedy"), ("coupled", "sampled")])
def test_after_the_first_rejection_the_rest_is_skipped_and_forgotten(verifier, decoding, wrong):
    service, own = make_service(), own_text(8, decoding)
    drafts = own[:4]
    drafts[wrong] = (own[wrong] + 1) % VOCAB
    replies = ask(service, block(drafts, more=True), verifier, decoding)
    assert [r.status for r in replies] == [Status.OK] * (wrong + 1) + [Status.SKIPPED] * (4 - wrong)
    assert [reply.token for reply in replies[: wrong + 1]] == own[: wrong + 1]
    held = len(PREFIX) + wrong + 1
    assert service.engine.held((0, 0, IDENTITY)) == held
    # What the engine goes on from is the text that stands, not the rejected drafts.
    following, on = block(own[wrong + 1 : wrong + 3], prefix=[], start=held), {0: PREFIX + own}
    assert [r.accepted for r in ask(service, following, verifier, decoding, on=on)] == [True, True]


def outline(reply):
    return reply.status, reply.accepted, reply.token, reply.feedback.tolist()


def probs_claims(probs, bits):
    weights = quantise(torch.as_tensor(probs), bits)
    return [{"weights": row.numpy()} for row in weights]


@pytest.mark.parametrize("verifier", ["full", "scalar", "coupled"])
def test_a_block_is_decided_as_its_drafts_one_by_one(verifier):
    generator = np.random.default_rng(3)
    lengths = []
    for session in range(30):
        context, drafts, claims = list(PREFIX), [], []
        for _ in range(3):  # drafts near the target's distribution, so that some stand
            target = distribution(logits_after(context), Sampling("sampled"))[0]
            device = 0.7 * target.numpy() + 0.3 / VOCAB
            drafts.append(int(generator.choice(VOCAB, p=device / device.sum())))
            context.append(drafts[-1])
            if verifier == "full":
                claims += probs_claims(device[None] / device.sum(), 16)
            elif verifier == "scalar":
                claims.append({"weight": max(1, round(65536 * device[drafts[-1]]))})
            else:
                claims.append({})
        service = make_service()
        rows = block(drafts, session=session, claims=claims)
        together = ask(service, rows, verifier, "sampled", bits=16)
        alone, other = [], make_service()
        for index, claim in enumerate(claims):
            prefix = [*PREFIX, *drafts[:index]]
            row = Row(session, 0, np.array(prefix), drafts[index], quiet=len(prefix), **claim)
            alone += ask(other, [row], verifier, "sampled", bits=16)
            if not alone[-1].accepted:
                break
        # Weights of a whole distribution may differ by a unit: one pass or two round differently.
        assert [outline(reply) for reply in together[: len(alone)]] == [*map(outline, alone)]
        assert {reply.status for reply in together[len(alone) :]} <= {Status.SKIPPED}
        # What the device draws itself is not held.
        key = (0, session, IDENTITY)
        assert service.engine.held(key) == other.engine.held(key)
        lengths.append(len(alone))
    assert len(set(lengths)) == 3


def test_without_the_prefix_the_first_row_asks_for_it_and_the_rest_is_skipped():
    replies = ask(make_service(), block([1, 2, 3], start=6, more=True))
    assert [r.status for r in replies] == [Status.PREFIX_NEEDED] + [Status.SKIPPED] * 3


def test_a_block_too_long_for_the_context_is_served_as_far_as_it_goes():
    service, own = make_service(context=5), own_text(6)
    replies = ask(service, block(own[:5], more=True))
    ok, refused, skip = Status.OK, Status.REFUSED, Status.SKIPPED
    assert [reply.status for reply in replies] == [ok, ok, ok, refused, skip, skip]
    # A rejection before it hides the refusal.
    replies = ask(make_service(context=5), block([(own[0] + 1) % VOCAB, *own[1:5]]))
    assert [reply.status for reply in replies] == [ok, skip, skip, skip, skip]


def test_blocks_of_several_texts_share_one_pass():
    service = make_service()
    texts = [(0, [5, 9, 2]), (1, [8]), (2, [4, 4, 4, 4, 6])]
    rows = []
    for session, prefix in texts:
        own = own_text(2, prefix=prefix)
        rows += block([own[0], own[1] if session else 0], prefix, session, more=True)
    replies = ask(service, rows)
    assert service.engine.stats.passes == 1
    for session, prefix in texts:
        own = own_text(3, prefix=prefix)
        served = [r for r in replies[3 * session : 3 * session + 3] if r.status == Status.OK]
        assert [reply.token for reply in served] == own[: len(served)]
        assert len(served) == (3 if session or own[1] == 0 else 2)


def test_a_claim_that_cannot_be_is_refused_and_the_drafts_are_forgotten():
    service = make_service()
    # `full` is defined on weights of 16 bits; these sum to 2**8.
    claims = probs_claims(np.full((2, VOCAB), 1 / VOCAB), 8)
    replies = ask(service, block([1, 2], claims=claims), "full", "sampled", bits=8)
    assert [reply.status for reply in replies] == [Status.REFUSED, Status.SKIPPED]
    assert service.engine.held((0, 0, IDENTITY)) == len(PREFIX)


def test_a_flush_is_not_asked_for_a_token():
    (reply,) = ask(make_service(), [Row(0, 0, np.array(PREFIX))])
    assert (reply.status, reply.token) == (Status.OK, -1)


def test_skipping_ends_with_the_block():
    block = np.array([False, True, True, False, True])
    stands = np.array([True, False, True, False, True])
    assert skipped(block, stands).tolist() == [False, False, True, False, True]
