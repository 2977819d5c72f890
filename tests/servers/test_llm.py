from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
import torch

from hlm.wire import Request, Status, WireError, decode_reply, encode_request
from servers.batcher import READ_AT_ONCE, RequestBatcher
from servers.engine.engine import Engine
from servers.llm import LanguageModelService
from tests.asking import IDENTITY, answers, request_of
from tests.models import VOCAB, random_model
from tests.wire_rows import Row, told


def make_service(**options) -> LanguageModelService:
    return LanguageModelService(Engine(random_model("llama", 2), max_context=32, **options))


def request(rows, client=0, **options) -> Request:
    return request_of("greedy", rows, client=client, feedback=True, **options)


def row(session, tokens, draft=-1, start=0, quiet=0) -> Row:
    return Row(session, start, np.asarray(tokens, np.int64), draft, quiet=quiet)


def own_choice(service, text):
    with torch.inference_mode():
        return int(service.engine.model(torch.tensor([text])).logits[0, -1].argmax())


def test_a_verdict_is_the_models_own_token():
    service = make_service()
    text = [5, 9, 2]
    own = own_choice(service, text)
    wrong = (own + 1) % VOCAB
    (reply,) = answers(service, [request([row(0, text, own), row(1, text, wrong)])])
    assert (told(reply)[0].accepted, told(reply)[0].token) == (True, own)
    assert (told(reply)[1].accepted, told(reply)[1].token) == (False, own)
    # The first token is predicted from nothing, so two fed tokens and the draft are told of.
    assert len(told(reply)[0].feedback) == 3
    assert told(reply)[0].feedback[-1] >> 7 == 1
    assert told(reply)[1].feedback[-1] >> 7 == 0


def test_what_was_decided_is_held_and_need_not_be_sent():
    service = make_service()
    (reply,) = answers(service, [request([row(0, [5, 9, 2], 1)])])
    decided = told(reply)[0].token
    assert service.engine.held((0, 0, IDENTITY)) == 4
    following = own_choice(service, [5, 9, 2, decided])
    further = request([row(0, [], 3, start=4)], on={0: [5, 9, 2, decided]})
    (reply,) = answers(service, [further])
    assert told(reply)[0].token == following


def test_a_gap_asks_for_the_prefix():
    service = make_service()
    answers(service, [request([row(0, [5, 9], 1)])])
    gap = request([row(0, [4], 1, start=8)], on={0: [5, 9, 1, 4, 4, 4, 4, 4]})
    (reply,) = answers(service, [gap])
    assert told(reply)[0].status == Status.PREFIX_NEEDED


def test_a_text_that_is_too_long_is_refused_and_others_are_served():
    service = make_service()
    (reply,) = answers(service, [request([row(0, np.ones(33), 1), row(1, [2, 3], 1)])])
    assert [r.status for r in told(reply)] == [Status.REFUSED, Status.OK]


def test_clients_do_not_share_sessions():
    service = make_service()
    answers(service, [request([row(0, [5, 9], 1)], client=1)])
    further = request([row(0, [4], 1, start=2)], client=2, on={0: [5, 9]})
    (reply,) = answers(service, [further])
    assert told(reply)[0].status == Status.PREFIX_NEEDED


def test_requests_answered_together_are_answered_as_if_alone():
    generator = np.random.default_rng(0)
    requests = [
        request(
            [row(s, generator.integers(1, VOCAB, generator.integers(2, 9)), 7) for s in range(3)],
            client=client,
        )
        for client in range(4)
    ]
    together = make_service().handle_each([encode_request(r) for r in requests])
    alone = [make_service().handle(encode_request(r)) for r in requests]
    assert together == alone


def test_requests_answered_together_share_forward_passes():
    service = make_service()
    requests = [request([row(0, [3, 4, 5], 7)], client=client) for client in range(6)]
    service.handle_each([encode_request(r) for r in requests])
    assert service.engine.stats.passes == 1


def test_a_vocabulary_the_model_does_not_have_is_refused():
    too_large = request_of("greedy", [row(0, [1], 2)], vocab=2 * VOCAB)
    with pytest.raises(WireError, match="vocabulary"):
        make_service().handle(encode_request(too_large))


def test_garbage_is_refused():
    with pytest.raises(WireError):
        make_service().handle(b"\x00garbage")


def test_waiting_requests_are_answered_from_one_pass():
    service = make_service()
    payloads = [
        encode_request(request([row(0, [3, 4, 5], 7)], client=client)) for client in range(5)
    ]

    async def ask():
        batcher = RequestBatcher(service, wait=0.05)
        return await asyncio.gather(*(batcher.exchange(payload) for payload in payloads))

    answers = asyncio.run(ask())
    assert service.engine.stats.passes == 1
    assert len(answers) == 5


def test_batches_of_one_do_not_mix_requests():
    service = make_service()
    payloads = [
        encode_request(request([row(0, [3, 4, 5], 7)], client=client)) for client in range(5)
    ]

    async def ask():
        batcher = RequestBatcher(service, most=1)
        return await asyncio.gather(*(batcher.exchange(payload) for payload in payloads))

    asyncio.run(ask())
    assert service.engine.stats.passes == 5


@pytest.mark.parametrize("bad", [b"", b"\xff\xff", b"\xff" * (READ_AT_ONCE + 1)])
def test_a_bad_request_spoils_no_other(bad):
    service = make_service()
    good = request([row(0, [3, 4, 5], 7)])

    async def ask():
        batcher = RequestBatcher(service, wait=0.05)
        return await asyncio.gather(
            batcher.exchange(encode_request(good)),
            batcher.exchange(bad),
            anext(batcher.stream(bad)),
            return_exceptions=True,
        )

    answer, error, at_opening = asyncio.run(ask())
    assert told(decode_reply(answer, good))[0].status == Status.OK
    assert isinstance(error, WireError) and isinstance(at_opening, WireError)


def test_a_message_is_read_while_the_engine_runs_a_pass(monkeypatch):
    service, begun, go_on = make_service(), threading.Event(), threading.Event()
    score = service.engine.score

    def held_up(feeds):
        begun.set()
        assert go_on.wait(120)
        return score(feeds)

    monkeypatch.setattr(service.engine, "score", held_up)
    good = request([row(0, [3, 4, 5], 7)])

    async def ask():
        batcher = RequestBatcher(service)
        answer = batcher.submit(encode_request(good))
        await asyncio.to_thread(begun.wait, 120)
        try:
            with pytest.raises(WireError):
                await asyncio.wait_for(batcher.exchange(b"\xff\xff"), 60)
        finally:
            go_on.set()
        return await answer

    assert told(decode_reply(asyncio.run(ask()), good))[0].status == Status.OK
