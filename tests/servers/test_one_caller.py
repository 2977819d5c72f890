"""One caller's error is its own: an honest caller beside it gets the reply it gets alone."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlm.wire import NO_TOKEN, Request, Status, WireError, decode_reply, encode_request
from servers.batcher import RequestBatcher
from servers.engine.engine import Engine
from servers.llm import LanguageModelService
from tests.asking import IDENTITY, request_of
from tests.hlm.wire_messages import random_request
from tests.models import VOCAB, random_model
from tests.wire_rows import Row, listed, rows_of, told

MODEL = random_model("llama", 2)
CLIENT = 5
HONEST = request_of(
    "coupled",
    [Row(0, 0, np.array([5, 9, 2]), 7), Row(1, 0, np.array([8]), 3)],
    seed=3,
    client=CLIENT,
    feedback=True,
    decoding="sampled",
)


def make_service() -> LanguageModelService:
    return LanguageModelService(Engine(MODEL, max_sessions=8, max_context=24))


def together(service, *payloads):
    async def ask():
        batcher = RequestBatcher(service, wait=0.001)
        asked = (batcher.exchange(payload) for payload in payloads)
        return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(ask())


ALONE = decode_reply(make_service().handle(encode_request(HONEST)), HONEST)


def is_as_alone(answer):
    reply = decode_reply(answer, HONEST)
    for row, alone in zip(told(reply), told(ALONE), strict=True):
        assert (row.status, row.accepted, row.token) == (alone.status, alone.accepted, alone.token)
        # An eighth of a nat: sums of floats depend on the shape of a batch.
        eighths = (row.feedback & 127).astype(int) - (alone.feedback & 127)
        assert abs(eighths).max() <= 1


def draft_without_prefix():
    return request_of("greedy", (Row(0, 0, np.zeros(0, np.int64), 7),))


def rows_of_two_texts():
    rows = (Row(0, 0, np.array([5, 9, 2]), 7), Row(0, 0, np.array([8]), 3))
    return request_of("greedy", rows)


def row_after_a_block():
    first = Row(0, 0, np.array([5, 9]), 7)
    block = Row(0, 2, np.array([7]), 3, quiet=1, block=True)
    return request_of("greedy", (first, block, Row(0, 3, np.array([1]), 3)))


@pytest.mark.parametrize("bad", [draft_without_prefix, rows_of_two_texts, row_after_a_block])
def test_a_request_that_cannot_be_served_is_refused_alone(bad):
    error, answer = together(make_service(), encode_request(bad()), encode_request(HONEST))
    assert isinstance(error, WireError)
    is_as_alone(answer)


def shrunk(request: Request, random: np.random.Generator) -> Request:
    """The same with the model's vocabulary, and mostly short enough to be served."""
    rows: list[Row] = []
    for row in listed(request.rows):
        start = int(row.start % 4)
        if row.block:
            start = rows[-1].start + len(rows[-1].tokens)
        elif rows and rows[-1].session == row.session and random.random() < 0.7:
            start = rows[-1].start + len(rows[-1].tokens)
        rows.append(replace(row, start=start))
    made = rows_of(rows)
    return replace(
        request,
        rows=made,
        client=int(random.choice([0, 1, CLIENT + 1, (1 << 32) - 1])),
        identity=random.bytes(16) if (made.starts == 0).any() else b"",
        digest=int(random.integers(1 << 32)) if made.builds.any() else 0,
    )


def test_the_largest_client_number_is_served():
    largest = replace(HONEST, client=(1 << 32) - 1)
    answer, own = together(make_service(), encode_request(largest), encode_request(HONEST))
    assert [row.status for row in told(decode_reply(answer, largest))] == [Status.OK] * 2
    is_as_alone(own)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_whatever_is_valid_by_its_format_breaks_no_neighbour(seed):
    random = np.random.default_rng(seed)
    bad = random_request(random, most_sessions=4, vocabs=(2, 3, 10, VOCAB))
    bad = shrunk(bad, random)
    service = make_service()
    payloads = [encode_request(bad), encode_request(HONEST)]
    for _ in range(2):  # once on an empty engine, once on one that holds the texts
        answer, own = together(service, *payloads)
        is_as_alone(own)
        if isinstance(answer, Exception):
            assert isinstance(answer, WireError)
        else:
            assert len(decode_reply(answer, bad)) == len(bad.rows)


class Fragile(LanguageModelService):
    """Its passes fail, for whatever reason, whenever a certain token is read."""

    def __init__(self, engine):
        super().__init__(engine)
        score = engine.score

        def fragile(feeds):
            if any(13 in feed.tokens for feed in feeds):
                raise RuntimeError("nobody foresaw this")
            return score(feeds)

        engine.score = fragile


def test_an_error_nobody_foresaw_hits_the_guilty_one_alone():
    service = Fragile(make_service().engine)
    bad = request_of("greedy", (Row(0, 0, np.array([13]), 4),), client=1)
    other = replace(bad, rows=rows_of([Row(0, 0, np.array([4]), NO_TOKEN)]), client=2)
    messages = [encode_request(request) for request in (HONEST, bad, other)]
    own, error, flushed = together(service, *messages)
    is_as_alone(own)
    assert isinstance(error, RuntimeError)
    assert told(decode_reply(flushed, other))[0].status == Status.OK


def test_requests_about_one_text_take_turns():
    first = request_of("greedy", (Row(0, 0, np.array([5, 9, 2]), 7),))
    again = request_of("greedy", (Row(0, 0, np.array([8, 4]), 7),))
    expected = [make_service().handle(encode_request(request)) for request in (first, again)]
    service = make_service()
    assert together(service, encode_request(first), encode_request(again)) == expected
    assert service.engine.held((0, 0, IDENTITY)) == 3
