"""The same bytes over a real network: two namespaces, and a slow, lossy wire between them.

The wire is ``tc netem`` on a veth pair, and, since not every kernel has netem, also a process that
delays and drops packets between two TUN devices. Nothing outside the two namespaces is reached.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from clients.policy import FixedPolicy
from fedhlm_app.client.device import Device
from fedhlm_app.client.routed import Routed
from fedhlm_app.hosting.llm import build_service
from fedhlm_app.launch.app_folder import code_root
from fedhlm_app.settings import Settings
from fedhlm_app.transport.http_transport import HttpTransport
from fedhlm_app.transport.transports import DirectTransport
from hlm.channels import Link
from hlm.transport import LinkDown, Transport

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(600)]

NEAR, FAR = "10.203.77.1", "10.203.77.2"
PORT = 8471
HEADERS = 112
"""Bytes of HTTP around a request and its reply (docs/deploy.md), and 52 of TCP and IP a packet."""
PACKET_HEADERS = 52
CLONE_NEWNET = 0x40000000

SLOW = Link("1 Mbit/s 60 ms", 1e6, 0.060)
LOSSY = Link("10 Mbit/s 30 ms", 1e7, 0.030)
LOSS = 0.05
"""Chance that a packet of `LOSSY` is lost."""

GREEDY = {"tokens-per-round": 12, "tokens-per-prompt": 6}
FULL = {**GREEDY, "decoding": "sampled", "verification": "full"}


def why_not(wire: str) -> str:
    """Why a kind of wire cannot be made here; empty when it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs root on Linux, to make network namespaces"
    if missing := [name for name in ("ip", "tc") if shutil.which(name) is None]:
        return f"needs {' and '.join(missing)} (package iproute2)"
    name = f"fedhlm-probe-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return "network namespaces are not allowed here"
    try:
        if wire == "netem":
            words = ["ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", "lo", "root"]
            tried = subprocess.run(
                [*words, "netem", "delay", "1ms"], capture_output=True, text=True, check=False
            )
            return f"no tc netem here: {tried.stderr.strip()}" if tried.returncode else ""
        return "" if os.access("/dev/net/tun", os.R_OK | os.W_OK) else "no /dev/net/tun here"
    finally:
        ip("netns", "del", name)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@dataclass
class Network:
    """Two namespaces: the device's is `near`, the server's is `far`."""

    wire: str
    near: str
    far: str

    @contextmanager
    def joined(self, link: Link, loss: float = 0.0) -> Iterator[None]:
        """Lay a wire of a link's delay and rate between the two, that loses a share of packets."""
        if self.wire == "netem":
            with self._netem(link, loss):
                yield
            return
        carrier = subprocess.Popen(
            [
                sys.executable, str(Path(__file__).with_name("slow_wire.py")),
                self.near, NEAR, self.far, FAR,
                str(link.rate_bits_per_s), str(link.round_trip_s), str(loss),
            ],
            stdout=subprocess.PIPE,
        )  # fmt: skip
        try:
            assert carrier.stdout is not None
            assert carrier.stdout.readline() == b"up\n"
            yield
        finally:
            carrier.kill()
            carrier.wait()

    @contextmanager
    def _netem(self, link: Link, loss: float) -> Iterator[None]:
        ip("link", "add", "d0", "netns", self.near, "type", "veth",
           "peer", "name", "s0", "netns", self.far)  # fmt: skip
        try:
            for namespace, end, address in ((self.near, "d0", NEAR), (self.far, "s0", FAR)):
                # One packet at a time: netem would lose or delay a whole train of them as one.
                ip("-n", namespace, "link", "set", end, "gso_max_segs", "1")
                ip("-n", namespace, "addr", "add", f"{address}/30", "dev", end)
                ip("-n", namespace, "link", "set", end, "up")
                subprocess.run(
                    ["tc", "-n", namespace, "qdisc", "add", "dev", end, "root", "netem",
                     "delay", f"{500 * link.round_trip_s}ms", "loss", f"{100 * loss}%",
                     "rate", f"{link.rate_bits_per_s:.0f}bit"],
                    check=True, capture_output=True,
                )  # fmt: skip
            yield
        finally:
            ip("-n", self.near, "link", "del", "d0")

    def device(self) -> str:
        """Name of the device's end of the wire."""
        shown = subprocess.run(
            ["ip", "-n", self.near, "-j", "addr"], check=True, capture_output=True, text=True
        )
        return next(
            end["ifname"]
            for end in json.loads(shown.stdout)
            if any(address["local"] == NEAR for address in end["addr_info"])
        )

    def sent(self) -> int:
        """Bytes the device's end has sent."""
        words = ["ip", "-n", self.near, "-s", "-j", "link", "show", self.device()]
        shown = subprocess.run(words, check=True, capture_output=True, text=True)
        return int(json.loads(shown.stdout)[0]["stats64"]["tx"]["bytes"])

    def within(self, act: Callable[[], Any]) -> Any:
        """Do something in a thread that lives in the device's namespace."""
        found: list[Any] = []
        failed: list[BaseException] = []

        def enter_and_act() -> None:
            try:
                with open(f"/run/netns/{self.near}") as namespace:
                    library = ctypes.CDLL(None, use_errno=True)
                    if library.setns(namespace.fileno(), CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), "setns")
                found.append(act())
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=enter_and_act)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return found[0]


@pytest.fixture(scope="module", params=["netem", "tun"])
def network(request) -> Iterator[Network]:
    """Two namespaces and a served LLM in the far one."""
    if reason := why_not(request.param):
        pytest.skip(reason)
    made = Network(request.param, f"fedhlm-{os.getpid()}-near", f"fedhlm-{os.getpid()}-far")
    server = None
    try:
        for name in (made.near, made.far):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        server = subprocess.Popen(
            [
                "ip", "netns", "exec", made.far,
                sys.executable, "-m", "fedhlm_app", "serve", "llm",
                "--host", "0.0.0.0", "--port", str(PORT),
            ],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(code_root()), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert server.stdout is not None
        assert server.stdout.readline().startswith("serving builtin")
        yield made
    finally:
        if server is not None:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(20)
            finally:
                server.kill()
        for name in (made.near, made.far):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


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
    return httpx.get(url, trust_env=False, timeout=30).json()["bytes"]


def over(network: Network, options: dict[str, Any]) -> Routed:
    """The same round over the wire; checks text and bytes against those within a process."""
    expected = in_process(options)

    def act() -> tuple[Routed, Counting, dict[str, int]]:
        link = HttpTransport(f"{FAR}:{PORT}", timeout=60)
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
    return link.seconds(traffic.messages, traffic.uplink + traffic.downlink + headers)


@pytest.mark.parametrize("options", [GREEDY, FULL], ids=["greedy", "full"])
def test_a_slow_link_takes_as_long_as_the_cost_model_says(network, options):
    """Small messages cost a round trip each; distributions of 8 kB fill the link."""
    with network.joined(SLOW):
        routed = over(network, options)
    seconds, measured = predicted(routed, SLOW), routed.traffic.waited
    if options is FULL:
        assert seconds > 2 * SLOW.round_trip_s * routed.traffic.messages
    # Besides the wire there are the LLM, a connection to open, and whatever else runs here.
    compute = in_process(options).traffic.waited
    print(f"{seconds:.2f} s predicted, {measured:.2f} s measured, {compute:.2f} s without a wire")
    assert measured > 0.95 * seconds
    assert measured < 1.5 * seconds + 5 * compute + 1.0


def test_losses_cost_time_and_nothing_else(network):
    with network.joined(LOSSY, LOSS):
        routed = over(network, FULL)
    traffic = routed.traffic
    lossless = predicted(routed, LOSSY)
    assert traffic.waited > 0.95 * lossless
    # A lost packet is sent again a round trip later, the last one of a message after TCP's 200 ms.
    packets = 4 * traffic.messages + (traffic.uplink + traffic.downlink) / 1460
    most = lossless / (1 - LOSS) + LOSS * packets * (LOSSY.round_trip_s + 0.2)
    print(f"{most:.2f} s predicted with TCP's waits, {traffic.waited:.2f} s measured")
    assert traffic.waited < 5 * most + 3


def test_a_cut_wire_leaves_tokens_with_the_device_and_a_mended_one_is_used_again(network):
    with network.joined(SLOW):
        end = network.device()
        link = HttpTransport(f"{FAR}:{PORT}", timeout=2)

        class Cutting:
            calls = 0

            def exchange(self, payload: bytes) -> bytes:
                self.calls += 1
                if self.calls == 3:
                    ip("-n", network.near, "link", "set", end, "down")
                return link.exchange(payload)

        begun = time.monotonic()
        routed = network.within(lambda: route(GREEDY, Cutting()))
        assert time.monotonic() - begun < 60
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
        mended = network.within(lambda: route(GREEDY, link))
    for found, wanted in zip(texts(mended), texts(in_process(GREEDY)), strict=True):
        np.testing.assert_array_equal(found, wanted)
