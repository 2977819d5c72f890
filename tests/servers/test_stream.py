"""Streams: the text is the LLM's own whatever the window, the company and the time of a stop."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

import numpy as np
import pytest

from hlm.wire import NO_TOKEN, Status, WireError, decode_reply, encode_request
from hlm.wire.frames import End, FrameReader
from hlm.wire.stream import Control, Opening, Outcome, encode_answer, encode_control, encode_opening
from servers import schedule, stream
from servers.batcher import RequestBatcher
from tests.asking import IDENTITY, request_of
from tests.streaming import CONTEXT, SAMPLED, Device, asked, make_service, own_text, prompts
from tests.wire_rows import Row, listed, told


def test_nothing_taken_back_is_the_llms_own_text():
    texts = prompts(5)
    device = Device(make_service(), asked(texts)).read_all()
    assert device.texts() == [own_text(text, 21) for text in texts]
    assert set(device.ends.values()) == {End.SPAN}


def test_threads_of_one_device_read_streams_beside_each_other():
    """A serving device with the LLM in its own process writes each batch in a thread."""
    service, texts = make_service(), prompts(16)

    def read(number):
        found = []
        for key in range(number, len(texts), 4):
            # Its own text, by a number of its own.
            row = Row(key, 0, np.array(texts[key]), 7)
            request = request_of("greedy", [row], client=0, feedback=True)
            found.append(Device(service, request, key=key).read_all().texts())
        return found

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(read, range(4)))
    for number, read_texts in enumerate(found):
        assert read_texts == [[own_text(text, 21)] for text in texts[number::4]]
    assert len(service.streams) == 0


def per_token(service, texts, count, **options):
    """The same by one request a token."""
    texts = [list(text) for text in texts]
    for _ in range(count):
        request = asked(texts, **options)
        reply = decode_reply(service.handle(encode_request(request)), request)
        for text, row in zip(texts, told(reply), strict=True):
            text.append(row.token)
    return texts


@pytest.mark.parametrize("options", [SAMPLED, {**SAMPLED, "temperature": 0.7, "top_p": 0.9}])
def test_sampled_streams_are_coupled_requests_one_by_one(options):
    texts = prompts(4)
    device = Device(make_service(), asked(texts, **options), span=12).read_all()
    assert device.texts() == per_token(make_service(), texts, 13, **options)


@pytest.mark.parametrize("window", [1, 4, 64])
def test_the_window_changes_nothing(window):
    texts = prompts(3)
    device = Device(make_service(), asked(texts, **SAMPLED), credit=window).read_along(window)
    assert device.texts() == Device(make_service(), asked(texts, **SAMPLED)).read_all().texts()


def test_credit_bounds_how_far_the_server_runs_ahead():
    device = Device(make_service(), asked(prompts(2)), credit=3).read_all()
    assert [len(tokens) for tokens in device.tokens.values()] == [3, 3]
    assert set(device.ends.values()) == {End.UNHEARD}
    assert len(device.service.streams) == 0


def test_a_row_without_a_draft_goes_on_from_its_tokens():
    texts = prompts(2)
    device = Device(make_service(), asked(texts, [NO_TOKEN, 7]), span=5).read_all()
    assert [row.token == NO_TOKEN for row in told(device.reader.reply)] == [True, False]
    assert device.texts() == [own_text(texts[0], 5), own_text(texts[1], 6)]


def test_it_ends_with_the_longest_context():
    text = list(range(1, CONTEXT - 2))
    device = Device(make_service(), asked([text, [*text, 3, 4, 5]])).read_all()
    assert device.ends == {0: End.CONTEXT, 1: End.CONTEXT}
    assert [len(text) for text in device.texts()] == [CONTEXT, CONTEXT + 1]
    assert device.text(0) == own_text(text, 3)


def held(service, number, client=0):
    session = client, number, IDENTITY
    return service.engine.tokens(session).tolist() if service.engine.held(session) else None


def test_what_is_written_past_a_stop_is_forgotten():
    device = Device(make_service(), asked(prompts(3)))
    for _ in range(8):
        device.read()
    assert device.control(stops={1: 2}) is Outcome.APPLIED
    assert device.control(stops={1: 2}) is Outcome.APPLIED
    assert (
        held(device.service, 1) == device.text(1)[: len(listed(device.request.rows)[1].tokens) + 3]
    )
    device.read_all()
    assert device.ends == {0: End.SPAN, 1: End.STOPPED, 2: End.SPAN}
    assert device.service.streams.stats.overshot == len(device.tokens[1]) - 2
    assert device.service.streams.stats.late == 1
    # The device goes on from what it took, without sending it again.
    text = held(device.service, 1)
    later = request_of("greedy", [Row(1, len(text), np.array([8]), 3)], on={1: text})
    reply = decode_reply(device.service.handle(encode_request(later)), later)
    assert told(reply)[0].status == Status.OK
    assert told(reply)[0].token == own_text([*text, 8], 1)[-1]


def test_a_stop_that_cannot_be_is_refused_whole():
    device = Device(make_service(), asked(prompts(3)))
    for _ in range(4):
        device.read()
    written = len(device.tokens[0])
    for stops in ({0: written + 1, 1: 0}, {1: 0, 3: 0}):
        assert device.control(credit=99, stops=stops) is Outcome.REFUSED
    assert device.control(stops={0: 0}, key=78) is Outcome.UNKNOWN
    with pytest.raises(WireError):
        device.service.handle(encode_control(Control(77, 3))[:-1])
    device.read_all()
    assert set(device.ends.values()) == {End.SPAN}
    stats = device.service.streams.stats
    assert (stats.refused, stats.unknown, stats.overshot) == (2, 1, 0)
    assert device.control(credit=99) is Outcome.UNKNOWN


@pytest.mark.parametrize("stopped", [True, False])
def test_a_lost_stop_costs_tokens_and_nothing_else(stopped):
    """The next request about the text ends its row."""
    device = Device(make_service(), asked(prompts(2)))
    for _ in range(6):
        device.read()
    text = device.text(0)[: len(listed(device.request.rows)[0].tokens) + 2]
    if stopped:
        device.control(stops={0: 1})
    later = request_of("greedy", [Row(0, len(text), np.array([8]), 3)], on={0: text})
    reply = decode_reply(device.service.handle(encode_request(later)), later)
    assert told(reply)[0].token == own_text([*text, 8], 1)[-1]
    assert held(device.service, 0) == own_text([*text, 8], 1)
    device.read_all()
    assert device.ends == {0: End.STOPPED, 1: End.SPAN}
    assert device.text(1) == own_text(listed(device.request.rows)[1].tokens, 21)


def test_a_stranger_ends_no_stream():
    """Who names the text, but neither identity nor key, changes nothing."""
    device = Device(make_service(), asked(prompts(2)))
    for _ in range(4):
        device.read()
    text = device.text(0)
    guess = request_of("greedy", [Row(0, len(text) - 1, np.array([8]), 3)], on={0: [1] * 99})
    reply = decode_reply(device.service.handle(encode_request(guess)), guess)
    assert told(reply)[0].status == Status.PREFIX_NEEDED
    begun = request_of("greedy", [Row(0, 0, np.array([8]), 3)], identity=bytes(16))
    assert told(decode_reply(device.service.handle(encode_request(begun)), begun))[0].token >= 0
    device.read_all()
    assert set(device.ends.values()) == {End.SPAN}


def test_a_stranger_that_names_a_later_place_spoils_no_digest():
    device = Device(make_service(), asked(prompts(1)))
    for _ in range(9):
        device.read()
    taken = device.text(0)[:-4]
    guess = request_of("greedy", [Row(0, len(taken) + 3, np.array([8]), 3)], on={0: [1] * 99})
    device.service.handle(encode_request(guess))
    device.control(stops={0: len(device.tokens[0]) - 4})
    later = request_of("greedy", [Row(0, len(taken), np.array([8, 7, 6, 5]), 3)], on={0: taken})
    assert told(decode_reply(device.service.handle(encode_request(later)), later))[0].token >= 0
    text = held(device.service, 0)
    after = request_of("greedy", [Row(0, len(text), np.array([8]), 3)], on={0: text})
    reply = decode_reply(device.service.handle(encode_request(after)), after)
    assert told(reply)[0].status == Status.OK


def test_rows_that_are_not_served_have_no_stream():
    service = make_service()
    rows = [Row(0, 0, np.array([5, 9]), 7), Row(1, 0, np.arange(1, CONTEXT + 2), 7)]
    device = Device(service, request_of("greedy", rows), span=4).read_all()
    assert [row.status for row in told(device.reader.reply)] == [Status.OK, Status.REFUSED]
    assert device.ends == {0: End.SPAN}
    unknown = request_of("greedy", [Row(7, 2, np.array([5]), 7)], on={7: [1, 2]})
    device = Device(service, unknown).read_all()
    assert told(device.reader.reply)[0].status == Status.PREFIX_NEEDED


def test_more_rows_than_there_is_room_for_get_their_verdicts_alone():
    service = make_service(sessions=4)
    first = Device(service, asked(prompts(3), client=1), key=1)
    first.read()
    first.read()
    second = Device(service, asked(prompts(3, seed=1), client=2), key=2).read_all()
    assert second.ends == {0: End.SPAN, 1: End.BUSY, 2: End.BUSY}
    assert all(row.status == Status.OK for row in told(second.reader.reply))
    # Beside another, one device has half of the room.
    third = Device(service, asked(prompts(1, seed=1), client=2), key=2)
    third.read()
    first.frames.close()
    fourth = Device(service, asked(prompts(4, seed=2), client=1), key=1).read_all()
    assert list(fourth.ends.values()).count(End.BUSY) == 2


def test_a_row_whose_text_lost_its_place_ends():
    service = make_service(sessions=4)
    device = Device(service, asked(prompts(2), client=1))
    device.read()
    device.read()
    others = asked(prompts(4, seed=2), client=2)
    service.handle(encode_request(others))
    device.read_all()
    assert set(device.ends.values()) == {End.LOST}
    assert len(service.streams) == 0


def test_the_same_key_again_takes_the_place_of_the_first():
    service = make_service()
    first = Device(service, asked(prompts(2)))
    first.read()
    second = Device(service, asked(prompts(2))).read_all()
    first.read_all()
    assert set(first.ends.values()) == {End.STOPPED}
    assert set(second.ends.values()) == {End.SPAN}


def test_a_reader_that_goes_away_leaves_no_trace():
    device = Device(make_service(), asked(prompts(2)))
    for _ in range(5):
        device.read()
    device.frames.close()
    assert len(device.service.streams) == 0
    text = device.text(0)
    later = request_of("greedy", [Row(0, len(text), np.array([8]), 3)], on={0: text})
    reply = decode_reply(device.service.handle(encode_request(later)), later)
    assert told(reply)[0].token == own_text([*text, 8], 1)[-1]


# Beside others, in passes that are shared.


async def read_beside(batcher, request, *, delays=None, window=64, key=1, span=20):
    """Read one stream of a batcher as a device does; tokens by row."""
    reader, tokens = FrameReader(request), {index: [] for index in range(len(request.rows))}
    payload = encode_opening(Opening(request, key, span, window))
    async with aclosing(batcher.stream(payload)) as frames:
        async for chunk in frames:
            for frame in reader.feed(chunk):
                for row, part in frame.tokens.items():
                    tokens[row] += part.tolist()
            if delays is not None:
                await asyncio.sleep(delays.exponential(0.002))
            written = max(map(len, tokens.values()))
            if written < span:
                await batcher.exchange(encode_control(Control(key, written + window)))
    assert reader.finished
    return [
        [*row.tokens.tolist(), reply.token, *tokens[index]]
        for index, (row, reply) in enumerate(
            zip(listed(request.rows), told(reader.reply), strict=True)
        )
    ]


@pytest.mark.parametrize("most", [1, 64])
def test_streams_and_verdicts_of_many_devices_share_passes(most, monkeypatch):
    monkeypatch.setattr(schedule, "SLICE_TOKENS", 16)
    service = make_service(sessions=64)
    delays = np.random.default_rng(1)
    requests = [asked(prompts(3, seed=client), client=client, **SAMPLED) for client in range(5)]
    single = asked([list(range(1, 40))], client=9)

    async def together():
        batcher = RequestBatcher(service, most=most)
        streams = [
            read_beside(batcher, request, key=number, window=(1, 4, 64)[number % 3], delays=delays)
            for number, request in enumerate(requests)
        ]
        verdict = batcher.exchange(encode_request(single))
        *texts, reply = await asyncio.gather(*streams, verdict)
        return texts, decode_reply(reply, single)

    passes = service.engine.stats.passes
    texts, reply = asyncio.run(together())
    passes = service.engine.stats.passes - passes
    alone = [Device(make_service(), request).read_all().texts() for request in requests]
    assert texts == alone
    assert told(reply)[0].token == own_text(range(1, 40), 1)[-1]
    assert len(service.streams) == 0
    if most == 1:
        assert passes >= 5 * 20
    else:
        assert passes < 5 * 20


def test_where_passes_are_ones_own_they_do_not_depend_on_when_the_device_speaks():
    """Controls take effect where the credit before them ends, so sums have the same shapes."""

    async def passes(mean):
        service, delays, sizes = make_service(), np.random.default_rng(2), []
        score = service.engine.score
        service.engine.score = lambda feeds: (
            sizes.append(sum(len(feed.wanted) for feed in feeds)) or score(feeds)
        )
        batcher = RequestBatcher(service, most=1)
        request = asked(prompts(6), **SAMPLED)
        reader, written, stopped = FrameReader(request), 0, set()
        payload = encode_opening(Opening(request, 5, 20, 4))
        async with aclosing(batcher.stream(payload)) as frames:
            async for chunk in frames:
                for frame in reader.feed(chunk):
                    written += any(len(part) for part in frame.tokens.values())
                    await asyncio.sleep(delays.exponential(mean))
                    stops = {
                        row: written - 1
                        for row, part in frame.tokens.items()
                        if row not in stopped and len(part) and int(part[-1]) % 5 == 0
                    }
                    if stops or written % 2 == 0:
                        stopped |= stops.keys()
                        await batcher.exchange(encode_control(Control(5, written + 4, stops)))
        return [size for size in sizes if size]

    found = [asyncio.run(passes(mean)) for mean in (0, 0.001, 0.01)]
    assert found[0] == found[1] == found[2]
    assert min(found[0]) < 6


def test_a_stream_without_news_ends_and_holds_nobody_up(monkeypatch):
    monkeypatch.setattr(stream, "CREDIT_SECONDS", 0.05)
    service = make_service()

    async def neglect():
        batcher = RequestBatcher(service)
        request = asked(prompts(2))
        reader, found = FrameReader(request), []
        async for chunk in batcher.stream(encode_opening(Opening(request, 5, 20, 3))):
            found += reader.feed(chunk)
        assert reader.finished
        return found, await batcher.exchange(encode_control(Control(5, 9)))

    found, answer = asyncio.run(neglect())
    assert set(found[-1].ends.values()) == {End.UNHEARD}
    assert answer == encode_answer(Outcome.UNKNOWN)


def test_a_reader_that_goes_away_is_noticed_between_turns():
    service = make_service()

    async def leave():
        batcher = RequestBatcher(service)
        request = asked(prompts(2))
        async with aclosing(batcher.stream(encode_opening(Opening(request, 5, 40, 3)))) as frames:
            await anext(frames)
        for _ in range(12_000):
            if batcher.abandoned:
                return
            await asyncio.sleep(0.01)

    asyncio.run(leave())
    assert len(service.streams) == 0


def test_an_error_of_the_engine_ends_its_stream_alone():
    service = make_service()
    score, broken = service.engine.score, 3

    def fail_for_a_client(feeds):
        if any(feed.session[0] == broken and not len(feed.tokens) for feed in feeds):
            raise RuntimeError("out of memory")
        return score(feeds)

    service.engine.score = fail_for_a_client

    async def together():
        batcher = RequestBatcher(service)
        asking = [read_beside(batcher, asked(prompts(2), client=c), key=c) for c in (2, 3)]
        return await asyncio.gather(*asking, return_exceptions=True)

    good, bad = asyncio.run(together())
    assert good == [own_text(text, 21) for text in prompts(2)]
    assert isinstance(bad, RuntimeError)
    assert len(service.streams) == 0
