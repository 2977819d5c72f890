"""A device reads along: tokens on demand, credit in time, and what is left when a stream breaks."""

from __future__ import annotations

import re
import time
from contextlib import closing

import numpy as np
import pytest

from clients.resolvers.link import Link
from clients.resolvers.stream import MOST_LEFT, Spans
from fedhlm_app.transport.http_transport import HttpTransport
from fedhlm_app.transport.transports import DirectTransport
from hlm.transport import LinkDown
from hlm.wire import NO_TOKEN, Status, WireError, decode_reply, encode_reply, encode_request
from hlm.wire.frames import End, Frame, encode_frame, framed
from hlm.wire.stream import Control, decode_control, decode_opening, is_control
from tests.asking import request_of
from tests.models import VOCAB
from tests.served import serving
from tests.streaming import SAMPLED, SPAN, Device, asked, make_service, own_text, prompts
from tests.wire_rows import Row, RowReply, listed, reply_of, told


class Counting(DirectTransport):
    """Counts what it carries; breaks a stream after some pieces."""

    def __init__(self, service, pieces=1 << 30, mangle=lambda frames: frames):
        super().__init__(service)
        self.pieces, self.mangle = pieces, mangle
        self.up = self.down = self.messages = 0
        self.controls: list[Control] = []

    def post(self, payload):
        assert is_control(payload)
        self.controls.append(decode_control(payload))
        self.messages += 1
        self.up, self.down = self.up + len(payload), self.down + 2
        super().post(payload)

    def stream(self, payload):
        self.messages, self.up = self.messages + 1, self.up + len(payload)
        with closing(super().stream(payload)) as arriving:
            for number, frames in enumerate(arriving):
                if number == self.pieces:
                    raise LinkDown("cut")
                self.down += len(frames)
                yield self.mangle(frames)


def spans_of(service, **options):
    transport = Counting(service, **options)
    return Spans(Link(transport, "llm")), transport


def read_along(stream, count=SPAN):
    """All texts, by taking a token of each running row at a time."""
    texts = [[reply.token] for reply in told(stream.reply)]
    for _ in range(count):
        for row, token in zip(stream.running, stream.next(stream.running), strict=True):
            if token != NO_TOKEN:
                texts[row].append(int(token))
    return texts


@pytest.mark.parametrize("window", [1, 2, 5, 64])
def test_text_and_bytes(window):
    request = asked(prompts(3), **SAMPLED)
    spans, transport = spans_of(make_service())
    stream = spans.open(request, SPAN, window)
    texts = read_along(stream)
    whole = Device(make_service(), request).read_all().texts()
    assert [
        [*row.tokens, *text] for row, text in zip(listed(request.rows), texts, strict=True)
    ] == whole
    assert stream.over and not stream.running and set(stream.ends.values()) == {End.SPAN}
    assert stream.received == 3 * SPAN
    traffic = spans.collect()
    assert (traffic.uplink, traffic.downlink) == (transport.up, transport.down)
    assert traffic.messages == transport.messages == 1 + len(transport.controls)
    assert spans.collect().messages == 0
    if window == 64:
        assert not transport.controls
    else:
        # Half the window is used up between two controls.
        assert len(transport.controls) <= 1 + SPAN // max(1, window // 2)


def test_rows_are_taken_back_one_by_one():
    service = make_service()
    spans, _ = spans_of(service)
    stream = spans.open(asked(prompts(3)), SPAN, 4)
    first = stream.next([0, 1, 2])
    assert first.tolist() == [own_text(text, 2)[-1] for text in prompts(3)]
    stream.next([0, 1])
    stream.stop([1, 2])
    assert stream.running == [0]
    assert stream.next([0]).tolist() == [own_text(prompts(3)[0], 4)[-1]]
    spans.leave(stream)
    spans.finish()
    assert stream.over and stream.taken.tolist() == [3, 2, 1]
    assert set(stream.ends.values()) == {End.STOPPED}
    assert len(service.streams) == 0
    for number, text in enumerate(prompts(3)):
        session = (0, number, stream_identity())
        assert service.engine.tokens(session).tolist() == own_text(text, 1 + [3, 2, 1][number])


def stream_identity():
    return asked().identity


def test_what_came_past_a_stop_is_what_the_llm_would_have_written():
    with serving(make_service()) as (port, _):
        with closing(HttpTransport(f"127.0.0.1:{port}", timeout=120)) as transport:
            spans = Spans(Link(transport, "llm"))
            stream = spans.open(asked(prompts(1)), SPAN, 6)
            stream.next([0])
            time.sleep(0.1)
            spans.leave(stream)
            spans.finish()
            ahead = list(stream._waiting[0])
            assert stream.received == 1 + len(ahead)
            read = len(prompts(1)[0]) + 2
            assert own_text(prompts(1)[0], 2 + len(ahead))[read:] == ahead
            # Connections are used again; two are ready beside a stream.
            for _ in range(6):
                spans.leave(spans.open(asked(prompts(1)), SPAN, 6))
                spans.finish()
            assert len(transport._idle) <= 5


def test_streams_that_were_left_are_read_to_their_ends_in_turn():
    service = make_service()
    spans, transport = spans_of(service)
    for _ in range(2 * MOST_LEFT):
        spans.leave(spans.open(asked(prompts(1)), SPAN, 4))
    assert len(service.streams) <= MOST_LEFT
    spans.finish()
    traffic = spans.collect()
    assert (traffic.uplink, traffic.downlink) == (transport.up, transport.down)
    assert len(service.streams) == 0


def test_a_broken_stream_says_which_rows_lost_it():
    spans, transport = spans_of(make_service(), pieces=6)
    stream = spans.open(asked(prompts(2)), SPAN, 4)
    stream.next([0, 1])
    stream.stop([1])
    taken = 1
    while stream.next([0])[0] != NO_TOKEN:
        taken += 1
    assert stream.lost == {0} and stream.over and not stream.running
    assert stream.taken.tolist() == [taken, 1]
    assert spans.link.asleep and spans.collect().failures == 1
    # What was taken stands, and a new opening goes on from it.
    spans.link.back_off.wake()
    transport.pieces = 1 << 30
    text = own_text(prompts(2)[0], 1 + taken)
    again = spans.open(asked([text], [NO_TOKEN]), SPAN, 4)
    assert again.next([0]).tolist() == [own_text(text, 1)[-1]]


@pytest.mark.parametrize("wrong", [lambda frames: b"", lambda frames: frames[:-1] + b"\xff\xff"])
def test_frames_that_cannot_be_read_are_a_link_that_is_down(wrong):
    spans, _ = spans_of(make_service(), mangle=wrong)
    with pytest.raises(LinkDown):
        stream = spans.open(asked(prompts(1)), SPAN, 4)
        stream.next([0])
        assert not stream.lost
    assert spans.link.asleep


def frames_of(*frames, vocab=VOCAB):
    return [encode_frame(Frame({0: np.array(t, int)}, dict(ends)), vocab) for t, ends in frames]


END = ((0, End.SPAN),)


@pytest.mark.parametrize(
    ("told", "taken", "why"),
    [
        ([([5], ()), ([6, 7, 8, 9], ())], [5], "5 tokens of row 0; allowed: 4"),
        ([([5], ()), ([63], ())], [5], r"tokens must be in \[0, 50\)"),
        ([([5], ()), ([], ())], [5], "says nothing"),
        ([([5], END), ([], END)], [5], "goes on after its rows have ended"),
        ([([5], END), *[([6], ())] * 1000], [5], "goes on after its rows have ended"),
        ([([5], ()), *[([], ())] * 1000], [5], "says nothing"),
    ],
)
def test_a_server_that_says_what_cannot_be_is_left_alone(told, taken, why):
    class Lying(DirectTransport):
        given = 0

        def stream(self, payload):
            request = decode_opening(payload).request
            yield framed(encode_reply(reply_of([RowReply(token=7)]), request))
            for frame in frames_of(*told):
                self.given += 1
                yield frame

    transport = Lying(None)
    transport.post = lambda payload: None
    spans = Spans(Link(transport, "llm"))
    stream = spans.open(asked(prompts(1), vocab=50), SPAN, 4)
    found = []
    while (token := stream.next([0])[0]) != NO_TOKEN:
        found.append(token)
    assert found == taken and stream.over and transport.given <= 3
    assert spans.link.asleep and spans.collect().failures == 1
    assert re.search(why, spans.link.problem)
    spans.finish()


def test_no_server_and_no_opening():
    spans, _ = spans_of(make_service(), pieces=0)
    with pytest.raises(LinkDown):
        spans.open(asked(), SPAN, 4)
    assert spans.collect().failures == 1
    spans, _ = spans_of(make_service())
    with pytest.raises(WireError, match="vocab=99"):
        spans.open(asked(vocab=99), SPAN, 4)
    assert not spans.link.asleep


def test_a_later_request_ends_a_row_that_was_not_stopped():
    service = make_service()
    spans, _ = spans_of(service)
    stream = spans.open(asked(prompts(2)), SPAN, 4)
    stream.next([0, 1])
    text = own_text(prompts(2)[0], 2)
    later = request_of("greedy", [Row(0, len(text), np.array([8]), 3)], on={0: text})
    reply = told(decode_reply(service.handle(encode_request(later)), later))[0]
    assert reply.status == Status.OK and reply.token == own_text([*text, 8], 1)[-1]
    assert stream.next([1]).tolist() == [own_text(prompts(2)[1], 3)[-1]]
    while stream.next([0])[0] != NO_TOKEN:
        pass
    assert stream.ends[0] is End.STOPPED


def test_where_passes_are_ones_own_every_byte_depends_on_content_alone():
    random = np.random.default_rng(0)
    found = []
    with serving(make_service(), most=1) as (port, _):
        for mean in (0, 0.002, 0.01):
            with closing(HttpTransport(f"127.0.0.1:{port}", timeout=120)) as transport:
                spans = Spans(Link(transport, "llm"))
                stream = spans.open(asked(prompts(4), **SAMPLED), SPAN, 4)
                while stream.running:
                    rows, tokens = stream.running, stream.next(stream.running)
                    stream.stop([row for row, t in zip(rows, tokens, strict=True) if t % 7 == 0])
                    time.sleep(random.exponential(mean))
                spans.leave(stream)
                spans.finish()
            traffic = spans.collect()
            bytes_and_messages = traffic.uplink, traffic.downlink, traffic.messages
            found.append((bytes_and_messages, stream.received, stream.taken.tolist()))
    assert found[0] == found[1] == found[2]
    assert stream.received > sum(stream.taken)
