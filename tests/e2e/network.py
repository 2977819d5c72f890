"""Two network namespaces, a slow wire between them, and a served LLM in the far one.

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhlm_app.launch.app_folder import code_root
from hlm.channels import Link

NEAR, FAR = "10.203.77.1", "10.203.77.2"
PORT = 8471
CLONE_NEWNET = 0x40000000


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


@contextmanager
def two_namespaces(wire: str) -> Iterator[Network]:
    """Two namespaces, nothing between them yet."""
    made = Network(wire, f"fedhlm-{os.getpid()}-near", f"fedhlm-{os.getpid()}-far")
    try:
        for name in (made.near, made.far):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        yield made
    finally:
        for name in (made.near, made.far):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@contextmanager
def served_llm(network: Network, *options: str) -> Iterator[None]:
    """The built-in LLM, served in the far namespace."""
    server = subprocess.Popen(
        [
            "ip", "netns", "exec", network.far,
            sys.executable, "-m", "fedhlm_app", "serve", "llm",
            "--host", "0.0.0.0", "--insecure", "--port", str(PORT), *options,
        ],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(code_root()), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        assert server.stdout is not None
        assert server.stdout.readline().startswith("serving ")
        yield
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(120)
        finally:
            server.kill()
