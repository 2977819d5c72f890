from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlm.wire import InvalidField, Limits, OversizedMessage, TrailingData, WireError
from hlm.wire.edge import (
    EdgeQuery,
    EdgeReply,
    EdgeShare,
    decode_edge_query,
    decode_edge_reply,
    encode_edge_query,
    encode_edge_reply,
)


@st.composite
def queries(draw):
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    vocab = draw(st.sampled_from([2, 64, 4096, 152_064]))
    stepped = draw(st.booleans())
    width = 0 if stepped else draw(st.sampled_from([8, 16, 32]))
    rows, fresh, answers = (draw(st.integers(0, 6)) for _ in range(3))
    fresh = 0 if stepped else fresh

    def ids(count, most=vocab):
        return random.integers(0, most, count)

    share = EdgeShare(
        numbers=ids(answers, 1 << 16),
        rows=ids(answers, 300),
        answers=ids(answers),
        keys=random.integers(0, 256, (fresh, width), dtype=np.uint8),
        tokens=ids(fresh),
        verified=random.random(fresh) < draw(st.sampled_from([0.5, 1.0])),
    )
    return EdgeQuery(
        client=draw(st.integers(0, 2**40)),
        number=draw(st.integers(0, 2**16 - 1)),
        vocab=vocab,
        keys=random.integers(0, 256, (rows, width), dtype=np.uint8),
        drafts=ids(rows),
        steps=ids(rows, 100) if stepped else None,
        between=draw(st.booleans()),
        share=share,
    )


def same(first, second):
    arrays = (
        "keys",
        "drafts",
        "steps",
        "share",
        "numbers",
        "rows",
        "answers",
        "tokens",
        "verified",
    )
    for name, left in vars(first).items():
        right = getattr(second, name)
        if name == "share":
            same(left, right)
        elif name in arrays and left is not None:
            assert left.size == right.size and np.array_equal(left.reshape(right.shape), right), (
                name
            )
        else:
            assert left == right, name


@given(queries())
def test_queries_round_trip(query):
    payload = encode_edge_query(query)
    same(query, decode_edge_query(payload))


@given(queries(), st.integers(0, 2**32))
def test_replies_round_trip(query, seed):
    random = np.random.default_rng(seed)
    rows = len(query.drafts)
    outcomes = random.integers(0, 3, rows)
    tokens = np.where(
        random.random(rows) < 0.5, query.drafts, random.integers(0, query.vocab, rows)
    )
    reply = EdgeReply(outcomes, np.where(outcomes == 0, -1, tokens))
    result = decode_edge_reply(encode_edge_reply(reply, query), query)
    assert np.array_equal(result.outcomes, reply.outcomes)
    assert np.array_equal(result.tokens, reply.tokens)


@settings(max_examples=60)
@given(queries(), st.data())
def test_damaged_queries_are_refused_or_read(query, data):
    payload = bytearray(encode_edge_query(query))
    with pytest.raises(WireError):
        decode_edge_query(bytes(payload[: data.draw(st.integers(0, len(payload) - 1))]))
    with pytest.raises(TrailingData):
        decode_edge_query(bytes(payload) + b"\0")
    bit = data.draw(st.integers(0, 8 * len(payload) - 1))
    payload[bit // 8] ^= 128 >> bit % 8
    try:
        decode_edge_query(bytes(payload))
    except WireError:
        pass  # refused by name is as good as read; anything else would fail the test


@given(st.binary(max_size=200))
def test_noise_is_never_anything_but_a_wire_error(noise):
    query = EdgeQuery(1, 2, 64, np.zeros((3, 8), np.uint8), np.array([1, 2, 3]))
    for decode in (decode_edge_query, lambda payload: decode_edge_reply(payload, query)):
        try:
            decode(noise)
        except WireError:
            continue


def test_size_of_an_ordinary_exchange():
    keys = np.random.default_rng(0).integers(0, 256, (3, 32), dtype=np.uint8)
    query = EdgeQuery(7, 130, 4096, keys, np.array([5, 6, 7]))
    nothing = EdgeReply(np.zeros(3, np.int64), np.full(3, -1))
    found = EdgeReply(np.ones(3, np.int64), np.array([5, 6, 8]))
    # 3 * (32 bytes of key + 12 bits of draft) and 9 bytes of header.
    assert len(encode_edge_query(query)) <= 96 + 5 + 9
    assert len(encode_edge_reply(nothing, query)) == 2
    assert len(encode_edge_reply(found, query)) == 4  # 2 bits and 1 a row, and one id


def test_an_answer_costs_a_few_bytes_where_a_fresh_token_costs_its_key():
    nothing = np.zeros((0, 32), np.uint8)
    ids = np.zeros(0, np.int64)
    rows = np.arange(8)
    answers = EdgeShare(np.full(8, 130), rows, rows + 9)
    keys = np.random.default_rng(0).integers(0, 256, (8, 32), dtype=np.uint8)
    fresh = EdgeShare(keys=keys, tokens=rows + 9, verified=np.ones(8, np.bool_))
    short = len(encode_edge_query(EdgeQuery(7, 131, 4096, nothing, ids, share=answers)))
    long = len(encode_edge_query(EdgeQuery(7, 131, 4096, nothing, ids, share=fresh)))
    assert short <= 10 + 8 * 3 and long >= 8 * 33


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"vocab": 1}, "vocab"),
        ({"number": -1}, "number"),
        ({"number": 1 << 16}, "number"),
        ({"drafts": np.array([1, 64])}, "drafts"),
        ({"drafts": np.array([1, 2, 3])}, "keys"),
        ({"keys": np.zeros((2, 8))}, "keys"),
        ({"steps": np.array([1])}, "steps"),
        ({"share": EdgeShare(answers=np.array([1]))}, "numbers"),
        ({"share": EdgeShare(keys=np.zeros((1, 8), np.uint8), tokens=np.array([1]))}, "verified"),
    ],
)
def test_bad_fields_are_refused_by_name(change, name):
    fields = {
        "client": 1, "number": 2, "vocab": 64,
        "keys": np.zeros((2, 8), np.uint8), "drafts": np.array([1, 2]),
    }  # fmt: skip
    with pytest.raises(InvalidField, match=name):
        encode_edge_query(EdgeQuery(**(fields | change)))


def test_announcements_beyond_the_limits_are_refused():
    keys = np.ones((9, 8), np.uint8)
    payload = encode_edge_query(EdgeQuery(1, 2, 64, keys, np.arange(9)))
    with pytest.raises(OversizedMessage, match="rows"):
        decode_edge_query(payload, Limits(max_rows=8))
    with pytest.raises(OversizedMessage, match="bytes"):
        decode_edge_query(payload, Limits(max_bytes=20))


def test_a_reply_says_whether_nothing_of_others_is_held():
    query = EdgeQuery(1, 2, 64, np.ones((2, 8), np.uint8), np.array([3, 4]))
    nothing = np.zeros(2, np.int64), np.full(2, -1)
    for empty in (False, True):
        payload = encode_edge_reply(EdgeReply(*nothing, empty), query)
        assert len(payload) == 2
        assert decode_edge_reply(payload, query).empty is empty
    with pytest.raises(InvalidField, match="holds nothing"):
        encode_edge_reply(EdgeReply(np.array([1, 0]), np.array([3, -1]), empty=True), query)


def test_keys_are_whole_words():
    with pytest.raises(InvalidField, match="multiple of 8"):
        encode_edge_query(EdgeQuery(1, 2, 64, np.ones((2, 12), np.uint8), np.array([3, 4])))
