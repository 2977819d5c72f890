"""The same bytes over a real network: two namespaces, and a slow, lossy wire between them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import numpy as np
import pytest

from clients.policy import FixedPolicy
from fedhlm_app.client.device import Device
from fedhlm_app.client.routed import Routed
from fedhlm_app.hosting.llm import build_service
from fedhlm_app.settings import Settings
from fedhlm_app.transport.http_transport import HttpTransport
from fedhlm_app.transport.transports import DirectTransport
from hlm.channels import Link, Times
from hlm.transport import LinkDown, Transport
from tests.e2e import streamed
from tests.e2e.network import FAR, PORT, Network, ip, served_llm, two_namespaces, why_not

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(1800)]

HEADERS = 112
"""Bytes of HTTP around a request and its reply (docs/deploy.md), and 52 of TCP and IP a packet."""
PACKET_HEADERS = 52

SLOW = Link("1 Mbit/s 60 ms", 1e6, 0.060)
LOSSY = Link("10 Mbit/s 30 ms", 1e7, 0.030)
LOSS = 0.05
"""Chance that a packet of `LOSSY` is lost."""

TRIALS = 5
"""How often a round may be late, since other work on the machine makes it so, before it is."""

GREEDY = {"tokens-per-round": 12, "tokens-per-prompt": 6, "escalation": "token"}
FULL = {**GREEDY, "decoding": "sampled", "verification": "full"}


@pytest.fixture(scope="module", params=["netem", "tun"])
def network(request) -> Iterator[Network]:
    """Two namespaces and a served LLM in the far one."""
    if reason := why_not(request.param):
        pytest.skip(reason)
    with two_namespaces(request.param) as made, served_llm(made):
        yield made


class Counting:
    """A link, and what went over it."""

    def __init__(self, link: Transport) -> None:
        self.link = link
        self.up = self.down = self.messages = 0

    def exchange(self, payload: bytes) -> bytes:
        answer = self.link.exchange(payload)
        self.up += len(payload)
        self.down += len(answer)
        self.messages += 1
        return answer


def route(options: dict[str, Any], transport: Transport, server_round: int = 1) -> Routed:
    """One round of a device that asks about every token."""
    settings = Settings.from_sources({**options, "clients": 3, "clusters": 1}, environ={})
    device = Device(settings, 0, transport)
    return device.train_round(FixedPolicy(kept=False), server_round)


def in_process(options: dict[str, Any]) -> Routed:
    settings = Settings.from_sources({**options, "clients": 3, "clusters": 1}, environ={})
    return route(options, DirectTransport(build_service(settings)))


def texts(routed: Routed) -> list[np.ndarray]:
    return [records.token for records in routed.records]


def served_bytes() -> dict[str, int]:
    url = f"http://{FAR}:{PORT}/v1/stats"
    return httpx.get(url, trust_env=False, timeout=120).json()["bytes"]


def over(network: Network, options: dict[str, Any]) -> Routed:
    """The same round over the wire; checks text and bytes against those within a process."""
    expected = in_process(options)

    def act() -> tuple[Routed, Counting, dict[str, int]]:
        link = HttpTransport(f"{FAR}:{PORT}", timeout=120)
        before, counting = served_bytes(), Counting(link)
        routed = route(options, counting)
        after = served_bytes()
        link.close()
        return routed, counting, {way: after[way] - before[way] for way in after}

    sent_before = network.sent()
    routed, counting, served = network.within(act)
    for found, wanted in zip(texts(routed), texts(expected), strict=True):
        np.testing.assert_array_equal(found, wanted)
    traffic = routed.traffic
    assert traffic.failures == 0
    assert (traffic.uplink, traffic.downlink, traffic.measured) == (
        expected.traffic.uplink,
        expected.traffic.downlink,
        expected.traffic.measured,
    )
    carried = counting.up + counting.down
    assert carried == traffic.uplink + traffic.downlink + traffic.measured
    assert (served["uplink"], served["downlink"]) == (counting.up, counting.down)
    assert network.sent() - sent_before > counting.up
    return routed


def predicted(routed: Routed, link: Link) -> float:
    """Seconds that `hlm.channels` says a round waits, the headers of HTTP included."""
    traffic = routed.traffic
    headers = HEADERS * traffic.messages
    times = Times([link])
    for _ in range(traffic.messages):
        times.exchange(0, 0, 0.0)
    return float(times.now[0] + times.carried(traffic.uplink + traffic.downlink + headers)[0])


@pytest.mark.parametrize("options", [GREEDY, FULL], ids=["greedy", "full"])
def test_a_slow_link_takes_as_long_as_the_cost_model_says(network, options):
    """Small messages cost a round trip each; distributions of 8 kB fill the link."""
    for _ in range(TRIALS):
        with network.joined(SLOW):
            routed = over(network, options)
        seconds, measured = predicted(routed, SLOW), routed.traffic.waited
        if options is FULL:
            assert seconds > 2 * SLOW.round_trip_s * routed.traffic.messages
        # Besides the wire there are the LLM, a connection to open, and whatever else runs here.
        compute = in_process(options).traffic.waited
        print(f"{seconds:.2f} s predicted, {measured:.2f} measured, {compute:.2f} without a wire")
        assert measured > 0.95 * seconds
        if measured < 1.5 * seconds + 5 * compute + 1.0:
            return
    pytest.fail(f"{TRIALS} times longer than that, at last {measured:.2f} s")


def test_losses_cost_time_and_nothing_else(network):
    for _ in range(TRIALS):
        with network.joined(LOSSY, LOSS):
            routed = over(network, FULL)
        traffic = routed.traffic
        lossless = predicted(routed, LOSSY)
        assert traffic.waited > 0.95 * lossless
        # A lost packet is sent again a round trip later, a message's last one after TCP's 200 ms.
        packets = 4 * traffic.messages + (traffic.uplink + traffic.downlink) / 1460
        most = lossless / (1 - LOSS) + LOSS * packets * (LOSSY.round_trip_s + 0.2)
        print(f"{most:.2f} s predicted with TCP's waits, {traffic.waited:.2f} s measured")
        if traffic.waited < 5 * most + 3:
            return
    pytest.fail(f"{TRIALS} times longer than that, at last {traffic.waited:.2f} s")


def test_streams_over_a_wire_that_loses_a_fifth_of_all_packets(network):
    with network.joined(LOSSY, 0.2):

        def act() -> Routed:
            with closing(HttpTransport(f"{FAR}:{PORT}", timeout=120)) as link:
                return streamed.route(link)

        found = network.within(act)
    lost = streamed.unresolved(found)
    print(f"{found.traffic.waited:.2f} s waited, {lost} tokens unresolved")
    assert found.traffic.streams > 0 and lost < streamed.SETTINGS.tokens_per_round


def test_a_wire_that_is_cut_in_mid_stream(network):
    with network.joined(SLOW):
        end = network.device()

        def cut() -> None:
            ip("-n", network.near, "link", "set", end, "down")

        found = network.within(lambda: streamed.route(streamed.Struck(f"{FAR}:{PORT}", cut, 5)))
        assert streamed.unresolved(found) > 0
        ip("-n", network.near, "link", "set", end, "up")
        link = HttpTransport(f"{FAR}:{PORT}", timeout=120)
        mended = network.within(lambda: streamed.route(link))
        assert streamed.unresolved(mended) == 0 == mended.traffic.failures
        # What ran when the wire was cut has ended by its credit.
        deadline = time.monotonic() + 120
        while network.within(link.stats)["streams"]["open"]:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        link.close()


def test_a_cut_wire_leaves_tokens_with_the_device_and_a_mended_one_is_used_again(network):
    with network.joined(SLOW):
        end = network.device()
        link = HttpTransport(f"{FAR}:{PORT}", timeout=120)

        class Cutting:
            calls = 0

            def exchange(self, payload: bytes) -> bytes:
                self.calls += 1
                if self.calls == 3:
                    ip("-n", network.near, "link", "set", end, "down")
                    # Only where nothing can come is it waited for briefly.
                    link.close()
                    link.timeout = 2
                return link.exchange(payload)

        routed = network.within(lambda: route(GREEDY, Cutting()))
        assert routed.traffic.failures >= 1
        stages: dict[str, int] = {}
        for records in routed.records:
            for stage, count in records.stage_counts().items():
                stages[stage] = stages.get(stage, 0) + count
        assert stages["unresolved"] > 0
        assert stages["llm_accepted"] + stages["llm_resampled"] > 0
        assert sum(stages.values()) == GREEDY["tokens-per-round"]
        with pytest.raises(LinkDown):
            network.within(lambda: link.exchange(b"\x00"))
        ip("-n", network.near, "link", "set", end, "up")
        link.timeout = 120
        mended = network.within(lambda: route(GREEDY, link))
    for found, wanted in zip(texts(mended), texts(in_process(GREEDY)), strict=True):
        np.testing.assert_array_equal(found, wanted)
