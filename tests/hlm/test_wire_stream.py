"""Streams on the wire: what is read is what was written, in whatever pieces it arrives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlm.verification import VERIFIERS
from hlm.wire import (
    Limits,
    Status,
    WireError,
    encode_reply,
    encode_request,
)
from hlm.wire.frames import End, Frame, FrameReader, encode_frame, framed
from hlm.wire.stream import (
    STREAMED,
    Control,
    Opening,
    decode_control,
    decode_opening,
    encode_control,
    encode_opening,
    is_control,
)
from tests.asking import request_of
from tests.hlm.test_wire_fuzz import mutated
from tests.wire_rows import Row, RowReply, reply_of

VOCAB = 64
KEYS = st.integers(0, 2**64 - 1)
COUNTS = st.integers(0, 2**17)
TIGHT = Limits(max_rows=64, max_tokens=4096, max_vocab=1 << 16)


def asked(rows=3, verifier="greedy", vocab=VOCAB, **options):
    drafts = [row % 2 * 4 if verifier in STREAMED else -1 for row in range(rows)]
    texts = [Row(9 * row, 0, np.array([1, 2, 3]), draft) for row, draft in enumerate(drafts)]
    return request_of(verifier, texts, vocab=vocab, **options)


def reply_to(request, refused=()):
    return reply_of(
        [
            RowReply(Status.REFUSED) if index in refused else RowReply(token=7)
            for index in range(len(request.rows))
        ]
    )


@st.composite
def streams(draw):
    """A request, its reply, and frames until every row has ended."""
    vocab, count = draw(st.sampled_from([2, 64, 4096, 50257])), draw(st.integers(1, 40))
    rows = [Row(row, 0, np.array([0, 1]), 0) for row in range(count)]
    request = request_of("greedy", rows, vocab=vocab)
    running = list(range(count))
    frames = []
    token = st.integers(0, vocab - 1)
    while running:
        size = draw(st.integers(0, 3))
        even = draw(st.booleans())
        tokens, ends = {}, {}
        for row in running:
            wanted = size if even else draw(st.integers(0, 3))
            tokens[row] = np.array(draw(st.lists(token, min_size=wanted, max_size=wanted)), int)
            if len(frames) == 5 or draw(st.integers(0, 4)) == 0:
                ends[row] = draw(st.sampled_from(End))
        if ends or any(map(len, tokens.values())):
            frames.append(Frame(tokens, ends))
        running = [row for row in running if row not in ends]
    return request, reply_of([RowReply(token=1) for _ in rows]), frames


def same(left: Frame, right: Frame) -> bool:
    return left.ends == right.ends and {r: t.tolist() for r, t in left.tokens.items()} == {
        r: t.tolist() for r, t in right.tokens.items()
    }


def test_streams_go_on_from_verifiers_that_share_the_llms_draw():
    assert set(STREAMED) == {name for name, kind in VERIFIERS.items() if kind.shared_draw}


@given(KEYS, st.integers(1, 2**17), COUNTS, st.integers(1, 5))
def test_openings_keep_their_request(key, span, credit, rows):
    opening = Opening(asked(rows, seed=3), key, span, credit)
    payload = encode_opening(opening)
    assert decode_opening(payload) == opening
    assert not is_control(payload)


@given(KEYS, COUNTS, st.dictionaries(st.integers(0, 4095), COUNTS, max_size=20))
def test_controls(key, credit, stops):
    control = Control(key, credit, stops)
    payload = encode_control(control)
    assert decode_control(payload) == control
    assert is_control(payload)


@settings(max_examples=60, deadline=None)
@given(streams(), st.randoms(use_true_random=False))
def test_frames_in_whatever_pieces(stream, random):
    request, reply, frames = stream
    whole = framed(encode_reply(reply, request))
    whole += b"".join(encode_frame(frame, request.vocab) for frame in frames)
    reader, found, at = FrameReader(request), [], 0
    while at < len(whole):
        assert not reader.finished
        size = random.choice([1, 1, 2, 7, 200])
        found += reader.feed(whole[at : at + size])
        at += size
    assert reader.finished and reader.reply == reply
    assert len(found) == len(frames)
    assert all(map(same, found, frames))


def test_a_token_of_one_row_takes_three_bytes():
    """With its length; 12 bits of them are the id."""
    frame = Frame({0: np.array([4095])})
    assert len(encode_frame(frame, 4096)) == 3
    control = Control(2**64 - 1, 16, {0: 4})
    assert len(encode_control(control)) == 12
    request = asked(vocab=4096)
    opening = encode_opening(Opening(request, 1, 64, 8))
    assert len(opening) == 11 + len(encode_request(request))
    assert opening.endswith(encode_request(request))


def test_rows_without_a_verdict_have_no_stream():
    request = asked(3)
    reader = FrameReader(request)
    reader.feed(framed(encode_reply(reply_to(request, refused=(0, 2)), request)))
    assert reader.running == [1] and not reader.finished
    reader.feed(encode_frame(Frame({1: np.array([5])}, {1: End.SPAN}), VOCAB))
    assert reader.finished
    with pytest.raises(WireError, match="after the end"):
        reader.feed(encode_frame(Frame({1: np.array([5])}), VOCAB))


def _same_text_twice():
    rows = [Row(4, 0, np.array([1, 2]), 5), Row(4, 2, np.array([3]), 6)]
    return request_of("greedy", rows)


@pytest.mark.parametrize(
    ("opening", "named"),
    [
        (Opening(asked(verifier="full"), 1, 8, 8), "verifier='full'"),
        (Opening(asked(verifier="greedy", decoding="sampled"), 1, 8, 8), "decoding='sampled'"),
        (Opening(asked(), -1, 8, 8), "key=-1"),
        (Opening(asked(), 1, 0, 8), "span=0"),
        (Opening(asked(), 1, 8, 1 << 18), "credit=262144"),
        (Opening(_same_text_twice(), 1, 8, 8), "one row a session"),
    ],
)
def test_what_cannot_be_streamed_is_refused_by_name(opening, named):
    with pytest.raises(WireError, match=named):
        encode_opening(opening)


def test_what_an_opening_hides_is_refused_by_the_reader():
    good = encode_opening(Opening(asked(), 1, 8, 8))
    forged = good[:11] + encode_request(asked(verifier="scalar"))
    with pytest.raises(WireError, match="verifier='scalar'"):
        decode_opening(forged)


def test_a_frame_that_says_nothing():
    request = asked(2)
    reader = FrameReader(request)
    reader.feed(framed(encode_reply(reply_to(request), request)))
    with pytest.raises(WireError, match="says nothing"):
        reader.feed(encode_frame(Frame({0: np.array([], int), 1: np.array([], int)}), VOCAB))


@pytest.mark.parametrize("payload", [b"\xff\xff\xff\xff\x01", b"\x80\x80\x80\x80"])
def test_frames_of_absurd_lengths(payload):
    with pytest.raises(WireError):
        FrameReader(asked()).feed(payload)


def test_a_frame_is_not_awaited_beyond_the_limits():
    with pytest.raises(WireError, match="bytes of a frame: 300"):
        FrameReader(asked(), Limits(max_bytes=299)).feed(framed(bytes(300))[:2])


def test_mutated_messages_only_raise_wire_errors():
    random = np.random.default_rng(5)
    request = asked(4)
    frames = [
        Frame({row: random.integers(0, VOCAB, 2) for row in range(4)}, {1: End.STOPPED}),
        Frame({row: random.integers(0, VOCAB, row) for row in (0, 2, 3)}),
    ]
    stream = framed(encode_reply(reply_to(request), request))
    stream += b"".join(encode_frame(frame, VOCAB) for frame in frames)
    messages = {
        decode_opening: encode_opening(Opening(request, 77, 9, 3)),
        decode_control: encode_control(Control(77, 9, {0: 3, 2: 40})),
        lambda payload, limits: FrameReader(request, limits).feed(payload): stream,
    }
    counts = {True: 0, False: 0}
    for _ in range(400):
        for decode, payload in messages.items():
            try:
                decode(mutated(random, payload), TIGHT)
            except WireError:
                counts[False] += 1
            else:
                counts[True] += 1
    assert min(counts.values()) > 100
