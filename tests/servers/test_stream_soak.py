"""Many streams, many at a time, most of them ended in a way that nobody wishes for.

``python -m tests.servers.test_stream_soak 10000`` opens as many as it is told to: 20 s of processor
time for these, too long for the suite.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections import Counter
from contextlib import aclosing

import numpy as np
import pytest

from hlm.wire import WireError, encode_request
from hlm.wire.frames import End, FrameReader
from hlm.wire.stream import Control, Opening, Outcome, encode_answer, encode_control, encode_opening
from servers import stream
from servers.batcher import RequestBatcher
from servers.stream import Stream
from tests.asking import request_of
from tests.streaming import Device, asked, make_service, own_text
from tests.wire_rows import Row

DEVICES, TEXTS, SPAN = 128, 3, 2
WAYS = (
    "read", "stopped", "gone", "stop lost", "unheard", "opened twice", "mangled", "foreign stop",
)  # fmt: skip


async def stream_once(batcher, client: int, number: int, way: str, counts: Counter) -> None:
    """Open a stream of a device, and end it in some way."""
    text = np.array([1 + client % 50, 1 + number % 50])
    # A few texts of each device come again and again.
    request = request_of("greedy", [Row(number % TEXTS, 0, text, 7)], client=client)
    key = client << 32 | number
    opening = encode_opening(Opening(request, key, SPAN, 1 if way == "unheard" else SPAN))
    if way == "mangled":
        with pytest.raises(WireError):
            await anext(batcher.stream(opening[:-1]))
        return
    reader, ends = FrameReader(request), {}
    async with aclosing(batcher.stream(opening)) as frames:
        async for chunk in frames:
            for frame in reader.feed(chunk):
                ends |= frame.ends
            if way == "gone":
                return
            if way == "stopped":
                await batcher.exchange(encode_control(Control(key, SPAN, {0: 0})))
            elif way == "foreign stop":
                told = await batcher.exchange(encode_control(Control(key + 1, SPAN, {0: 0})))
                assert told == encode_answer(Outcome.UNKNOWN)
            elif way == "stop lost":
                later = request_of("greedy", [Row(number % TEXTS, 0, text, 7)], client=client)
                await batcher.exchange(encode_request(later))
            elif way == "opened twice" and reader.running:
                async with aclosing(batcher.stream(opening)) as again:
                    await anext(again)
            way = "read" if way != "unheard" else way
    assert reader.finished
    counts.update(ends.values())


@pytest.mark.parametrize("streams", [512, pytest.param(2_048, marks=pytest.mark.slow)])
def test_many_streams_leave_nothing_behind(streams, monkeypatch):
    monkeypatch.setattr(stream, "CREDIT_SECONDS", 0.01)
    service, counts = make_service(sessions=256), Counter()

    async def device(batcher, client: int) -> None:
        for number in range(streams // DEVICES):
            way = WAYS[(client + number) % len(WAYS)]
            await stream_once(batcher, client, number, way, counts)

    async def all_devices() -> None:
        batcher = RequestBatcher(service, most=DEVICES)
        await asyncio.gather(*(device(batcher, client) for client in range(DEVICES)))
        # Those whose devices have gone are noticed at the next turn.
        while len(service.streams):
            await asyncio.sleep(0.01)
        assert not batcher._arrived

    asyncio.run(all_devices())
    assert service.streams.stats.opened > 0.8 * streams
    assert {End.SPAN, End.STOPPED, End.UNHEARD} <= counts.keys()
    assert len(service.streams) == 0 and service.texts._count <= 2 * 256 + DEVICES
    gc.collect()
    assert not [one for one in gc.get_objects() if type(one) is Stream]
    served = Device(service, asked([[5, 9, 2]], client=999), span=6).read_all()
    assert served.texts() == [own_text([5, 9, 2], 7)]


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        test_many_streams_leave_nothing_behind(int(sys.argv[1]), patch)
