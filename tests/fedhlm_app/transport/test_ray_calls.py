"""What a device asks of an actor, and how often; a thread stands for the actor's process."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter

import numpy as np
import pytest

from clients.policy import ThresholdPolicy
from fedhlm_app.transport.transports import RayTransport
from hlm.spans import AT_ONCE, NEVER, SpanCosts, certain
from hlm.wire import WireError
from hlm.wire.stream import Opening, encode_opening
from servers.actors import LanguageModelActor
from tests.models import VOCAB, random_model
from tests.routed import Link, build, make_prompts, new_part
from tests.streaming import asked, make_service

SLM, LLM = random_model("llama", 1), random_model("llama", 2)
STEPS, ROWS = 12, 5


class Here(RayTransport):
    """Reaches an actor of this process, and counts its calls."""

    def __init__(self, service) -> None:
        super().__init__("llm", 120)
        self.calls: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._here = LanguageModelActor(lambda: service, most=1)

    def _ask(self, method, content):
        self.calls[method] += 1
        posted, self._posted = self._posted, []
        return self._run(getattr(self._here, method)(content, *posted))

    def _run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(120)

    def end(self) -> None:
        """Stop the actor's work, and its thread; nothing of any stream is left."""
        assert not self._arrived and not self._here._streams

        async def stopped():
            worker = self._here._batcher._worker
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)

        self._run(stopped())
        self._loop.call_soon_threadsafe(self._loop.stop)


def made(rule, link):
    setup = build(SLM, LLM, ThresholdPolicy(0.6), rule=rule, window=4, link=link)
    texts, records, traffic = setup.generate(make_prompts(VOCAB, ROWS), STEPS)
    return [new_part(texts, row) for row in range(ROWS)], records, traffic, setup.link


@pytest.mark.parametrize("rule", [AT_ONCE, certain(SpanCosts(40, 5, 60)), NEVER])
def test_streams_of_a_device_are_read_together_and_what_crosses_is_as_in_one_process(rule):
    expected, there, before, _ = made(rule, Link)
    texts, records, traffic, link = made(rule, Here)
    assert texts == expected and np.array_equal(records.stage, there.stage)
    for name in ("uplink", "downlink", "messages", "streams", "decoded", "overshot"):
        assert getattr(traffic, name) == getattr(before, name), name
    assert link.calls["open"] == traffic.streams
    # A call a step at most, and one for the ends of streams that were taken back last.
    assert link.calls["read"] <= STEPS
    link.end()


def test_a_refused_opening_is_the_devices_own_error():
    link = Here(make_service())
    with pytest.raises(WireError, match="vocab=99"):
        list(link.stream(encode_opening(Opening(asked(vocab=99), 1, 8, 8))))
    link.end()
