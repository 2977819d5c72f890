"""More connections than a server has places for: those that say nothing make room for others."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress

import pytest

from servers import connections
from tests.certificates import Authority
from tests.served import StuckService, make_service, payload, serving
from tests.servers.test_service import wait_until
from tests.servers.test_strangers import asked, metric

MOST = 20

BEGUN = b"POST /v1/exchange HTTP/1.1\r\nhost: x"
"""What half-open connections send."""

CROWD = """
import resource, socket, sys
port, count, addresses = map(int, sys.argv[1:])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
kept = []
for number in range(count):
    source = f"127.1.0.{1 + number % addresses}"
    one = socket.create_connection(("127.0.0.1", port), 120, (source, 0))
    try:
        one.sendall(b"POST /v1/exchange HTTP/1.1\\r\\nhost: x")
    except OSError:
        pass  # closed at once
    kept.append(one)
print("all there", flush=True)
sys.stdin.read()
"""
"""Half-open connections from so many addresses, which stay until standard input ends."""


@pytest.fixture
def few_places(monkeypatch):
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", MOST)
    monkeypatch.setattr("servers.http_server.HEADER_SECONDS", 3600)


@contextmanager
def half_open(port: int, count: int, sent: bytes = BEGUN):
    """So many connections, each from an address of its own."""
    with ExitStack() as stack:
        kept = []
        for number in range(count):
            source = f"127.0.1.{1 + number}"
            one = socket.create_connection(("127.0.0.1", port), 120, (source, 0))
            one.sendall(sent)
            kept.append(stack.enter_context(one))
        yield kept


@pytest.mark.usefixtures("few_places")
def test_half_open_connections_make_room_for_others_and_who_is_served_does_not():
    service = StuckService()
    with serving(service) as (port, served), ThreadPoolExecutor(1) as pool:
        first = pool.submit(asked, port, source="127.0.0.3")
        assert service.reached.wait(120)
        door = served.app.state.connections
        with half_open(port, 2 * MOST) as kept:
            wait_until(lambda: door.refused == MOST + 1)
            # Those that were silent for longest were cut.
            for one in kept[: MOST + 1]:
                with suppress(ConnectionResetError):
                    assert one.recv(1) == b""
            assert len(door) == MOST
            service.go.set()
            assert first.result(120)[0] == 200
            assert asked(port)[0] == 200
        wait_until(lambda: metric(port, "fedhlm_connections ") == 1)


@pytest.mark.usefixtures("few_places")
def test_connections_that_idle_after_an_answer_make_room_too():
    with serving(make_service()) as (port, served):
        with half_open(port, MOST, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n") as kept:
            for one in kept:
                assert b"200 OK" in one.recv(4096)
            assert asked(port) == (200, make_service().handle(payload()))
            assert served.app.state.connections.refused == 1


@pytest.mark.usefixtures("few_places")
def test_handshakes_that_do_not_end_make_room_too(tmp_path):
    authority = Authority(tmp_path)
    certificate, key = authority.issue("127.0.0.1")
    files = {"certificate": certificate, "key": key}
    trusted = ssl.create_default_context(cafile=authority.file)
    with serving(make_service(), **files) as (port, served):
        door = served.app.state.connections
        with half_open(port, 2 * MOST, b"\x16"):
            wait_until(lambda: door.refused == MOST)
            with trusted.wrap_socket(
                socket.create_connection(("127.0.0.1", port), 120), server_hostname="127.0.0.1"
            ) as let_in:
                let_in.sendall(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
                assert b"200 OK" in let_in.recv(4096)
        wait_until(lambda: len(door) == 0)


@pytest.mark.slow
@pytest.mark.parametrize("addresses", [1, 50])
def test_ten_thousand_half_open_connections(addresses, monkeypatch):
    import resource

    monkeypatch.setattr("servers.http_server.HEADER_SECONDS", 3600)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    each = min(10_000, (hard if hard > 0 else 1 << 20) - 100)
    shares = [min(each, 10_000 - begun) for begun in range(0, 10_000, each)]
    with serving(make_service()) as (port, served), ExitStack() as stack:
        door = served.app.state.connections
        most = min(door.most, addresses * door.each)
        expected = make_service().handle(payload())
        for share in shares:
            words = [sys.executable, "-c", CROWD, str(port), str(share), str(addresses)]
            crowd = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            stack.callback(crowd.kill)
            stack.enter_context(crowd)
            for _ in range(20):
                assert asked(port) == (200, expected)
            assert crowd.stdout.readline() == b"all there\n"
        wait_until(lambda: door.refused >= 10_000 - most)
        assert len(door) <= most
        assert asked(port) == (200, expected)
        assert metric(port, "fedhlm_connections_refused_total") >= 10_000 - most
        if addresses == 1:
            # Whoever shares the crowd's address waits until its connections are given up.
            with pytest.raises(OSError):
                asked(port, source="127.1.0.1")
