"""A server that does not answer is left alone, and no longer than its failures in a row say."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest

from clients.policy import FixedPolicy
from clients.records import Traffic
from clients.resolvers.link import BackOff, Link
from hlm.transport import LinkDown
from hlm.wire import WireError
from tests.models import VOCAB, random_model
from tests.routed import build, make_prompts


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Answering:
    def exchange(self, payload: bytes) -> bytes:
        return b"\x01"


def pause(back_off: BackOff, clock: Clock) -> float:
    """Seconds until the server may be asked again."""
    begin, step = clock.now, 0.25
    while back_off.asleep:
        clock.now += step
    waited, clock.now = clock.now - begin, begin
    return waited


def test_pauses_double_up_to_the_longest_and_start_again_after_an_answer():
    clock = Clock()
    back_off = BackOff(0.5, 3.0, clock)
    assert not back_off.asleep
    found = []
    for _ in range(4):
        back_off.failed()
        found.append(pause(back_off, clock))
    assert found == [0.5, 1.0, 2.0, 3.0]
    back_off.wake()
    assert not back_off.asleep
    back_off.failed()
    assert pause(back_off, clock) == 3.0  # waking is no answer
    back_off.answered()
    assert not back_off.asleep
    back_off.failed()
    assert pause(back_off, clock) == 0.5


def test_after_an_answer_of_the_llm_the_next_failure_starts_at_the_first_pause():
    slm, llm = random_model("llama", 1), random_model("llama", 2)
    setup = build(slm, llm, FixedPolicy(kept=False), pause=0.5)
    back_off = setup.uplink.link.back_off
    back_off.clock = clock = Clock()
    prompts = make_prompts(VOCAB, 1)

    def one_step(down: bool) -> None:
        setup.link.down = down
        while back_off.asleep:
            clock.now += 0.25
        setup.generate(prompts, 1, np.array([setup.link.calls]))

    found = []
    for down in (True, True, True, False, True):
        one_step(down)
        found.append(pause(back_off, clock))
    assert found == [0.5, 1.0, 2.0, 0.0, 0.5]


def test_a_refusal_of_the_llm_is_an_answer():
    slm, llm = random_model("llama", 1), random_model("llama", 2)
    setup = build(slm, llm, FixedPolicy(kept=False), pause=0.5)
    back_off = setup.uplink.link.back_off
    back_off.clock = clock = Clock()
    setup.link.down = True
    for _ in range(3):
        while back_off.asleep:
            clock.now += 0.25
        setup.generate(make_prompts(VOCAB, 1), 1)

    class Refusing:
        def exchange(self, payload: bytes) -> bytes:
            raise WireError("no")

    back_off.wake()
    setup.uplink.link.transport = Refusing()
    with pytest.raises(WireError):
        setup.generate(make_prompts(VOCAB, 1), 1)
    back_off.failed()
    assert pause(back_off, clock) == 0.5


def test_after_an_answer_of_the_edge_the_next_failure_starts_at_the_first_pause():
    class Flaky:
        down = True

        def exchange(self, payload: bytes) -> bytes:
            if self.down:
                raise LinkDown("cut")
            return b"\x01"

    transport = Flaky()
    link = Link(transport, "edge")
    link.back_off.clock = clock = Clock()
    found = []
    for down in (True, True, False, True):
        transport.down = down
        with nullcontext() if not down else pytest.raises(LinkDown):
            link.exchange(b"\x00", bytes, Traffic())
        found.append(pause(link.back_off, clock))
    assert found == [0.5, 1.0, 0.0, 0.5]


@pytest.mark.parametrize("server", ["llm", "edge"])
def test_an_answer_that_cannot_be_read_is_none(server, caplog):
    def unreadable(answer: bytes) -> bytes:
        raise WireError("byte 0 is odd")

    link, traffic = Link(Answering(), server), Traffic()
    for _ in range(2):
        with pytest.raises(LinkDown, match="byte 0 is odd"):
            link.exchange(b"\x00", unreadable, traffic)
    assert link.asleep and traffic.failures == 2
    assert (traffic.uplink, traffic.downlink, traffic.edge, traffic.messages) == (0, 0, 0, 0)
    assert len(caplog.records) == 1  # once in a row
    for _ in range(2):
        link.exchange(b"\x00", bytes, traffic)
    assert caplog.messages[1:] == [
        f"the {'LLM' if server == 'llm' else server} server answers again"
    ]


def test_bytes_are_counted_by_the_server_they_cross_to():
    traffic = Traffic()
    Link(Answering(), "llm").exchange(b"\x00\x01\x02", bytes, traffic)
    Link(Answering(), "edge").exchange(b"\x00\x01", bytes, traffic)
    assert (traffic.uplink, traffic.downlink, traffic.messages, traffic.edge) == (3, 1, 1, 3)
