"""Strangers at the server's door: refused and counted, while others are served."""

from __future__ import annotations

import resource
import socket
import ssl
import threading
from contextlib import ExitStack
from http.client import HTTPConnection

import numpy as np
import pytest

from servers import connections
from servers.connections import open_files, place_of
from tests.certificates import Authority
from tests.served import StuckService, make_service, payload, serving
from tests.servers.test_service import wait_until

HONEST = "127.0.0.2"


def asked(port, body=None, source=HONEST, method="POST", path="/v1/exchange"):
    connection = HTTPConnection("127.0.0.1", port, timeout=120, source_address=(source, 0))
    connection.request(method, path, payload() if body is None else body)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def metric(port, name):
    text = asked(port, b"", method="GET", path="/metrics")[1].decode()
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def test_one_address_has_some_connections_and_no_more():
    with serving(make_service(), per_address=20) as (port, _), ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=120))
            for _ in range(50)
        ]
        # Those beyond are closed before anything is read.
        for one in silent[20:]:
            assert one.recv(1) == b""
        assert asked(port)[0] == 200
        assert metric(port, "fedhlm_connections_refused_total") == 30
        for one in silent:
            one.close()
        wait_until(lambda: metric(port, "fedhlm_connections ") == 1)
        assert asked(port, source="127.0.0.1")[0] == 200


def test_a_handshake_that_never_ends_is_counted_and_given_up(monkeypatch, tmp_path):
    authority = Authority(tmp_path)
    certificate, key = authority.issue("127.0.0.1")
    files = {"certificate": certificate, "key": key}
    with serving(make_service(), per_address=4, **files) as (port, served):
        door = served.app.state.connections
        with ExitStack() as stack:
            for _ in range(8):
                silent = socket.create_connection(("127.0.0.1", port), timeout=120)
                one = stack.enter_context(silent)
            assert one.recv(1) == b""
            assert (len(door), door.refused) == (4, 4)
        wait_until(lambda: len(door) == 0)
        with monkeypatch.context() as patch:
            patch.setattr(connections, "HANDSHAKE_SECONDS", 0.1)
            with socket.create_connection(("127.0.0.1", port), timeout=120) as silent:
                assert silent.recv(1) == b""
        wait_until(lambda: len(door) == 0)
        trusted = ssl.create_default_context(cafile=authority.file)
        with trusted.wrap_socket(
            socket.create_connection(("127.0.0.1", port)), server_hostname="127.0.0.1"
        ) as let_in:
            let_in.sendall(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
            assert b"200 OK" in let_in.recv(4096)


def test_a_flood_from_one_address_leaves_others_their_turn_and_their_half(monkeypatch):
    monkeypatch.setattr("servers.bodies.SHARE_SECONDS", 0)
    service, statuses = StuckService(), []

    def flood(client):
        statuses.append(asked(port, payload(client=client), "127.0.0.1")[0])

    with serving(service, queue=8, most=1) as (port, served):
        threads = [threading.Thread(target=flood, args=(client,)) for client in range(100, 120)]
        for thread in threads:
            thread.start()
        wait_until(lambda: statuses == [503] * 16)
        found = []
        honest = threading.Thread(target=lambda: found.append(asked(port, payload(client=7))))
        honest.start()
        wait_until(lambda: served.waiting.taken == 5)
        assert asked(port, b"", method="GET", path="/readyz")[0] == 200
        service.go.set()
        for thread in (honest, *threads):
            thread.join(120)
        assert found[0][0] == 200
        assert sorted(statuses) == [200] * 4 + [503] * 16
        # At most one was read already, and one took its turn before.
        assert service.passes.index([7]) <= 2
        assert metric(port, 'fedhlm_refused_total{reason="queue-share"}') == 16


def test_bytes_that_mean_nothing_do_no_harm():
    random, good = np.random.default_rng(3), payload()
    with serving(make_service()) as (port, _):
        connection = HTTPConnection("127.0.0.1", port, timeout=120)
        for trial in range(120):
            body = bytearray(good)
            for place in random.integers(len(body), size=1 + trial % 3):
                body[place] = random.integers(256)
            cut = random.integers(1, len(body) + 1) if trial % 4 == 0 else len(body)
            connection.request(
                "POST", "/v1/stream" if trial % 5 == 0 else "/v1/exchange", body[:cut]
            )
            answer = connection.getresponse()
            assert answer.status in (200, 400), answer.read()
            answer.read()
        connection.close()
        assert asked(port) == (200, make_service().handle(good))


def test_addresses_of_one_line_count_as_one():
    assert place_of("10.0.0.5") == place_of("::ffff:10.0.0.5") == "10.0.0.5"
    assert place_of("2001:db8::1") == place_of("2001:db8::ffff:1%eth0")
    assert place_of("2001:db8::1") != place_of("2001:db8:0:1::1")


@pytest.mark.parametrize(
    ("limits", "found"),
    [((1024, 4096), 4096), ((1024, 1 << 20), 8320), ((1 << 16, 1 << 16), 1 << 16),
     ((1024, resource.RLIM_INFINITY), 8320)],
)  # fmt: skip
def test_as_many_files_may_be_open_as_the_system_lets(limits, found, monkeypatch, caplog):
    now = [limits]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: now[0])
    monkeypatch.setattr(resource, "setrlimit", lambda kind, wanted: now.append(wanted))
    assert open_files(8320) == found
    assert now[-1][0] == found
    now[:] = [limits]
    door = connections.Connections()
    assert ("may be open" in caplog.text) == (found < 8320)
    assert door.most <= found - connections.OTHER_FILES and door.each == 256
