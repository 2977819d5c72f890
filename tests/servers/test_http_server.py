"""Connections that dawdle are closed, those that wait for an answer are not."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from starlette.applications import Starlette
from starlette.routing import Route

from fedhlm_app.transport.http_transport import HttpTransport
from servers.http_server import listen, make_server
from tests.served import StuckService, make_service, payload, serving


def test_connections_that_send_no_headers_are_closed(monkeypatch):
    patience = "servers.http_server.HEADER_SECONDS"
    whole = b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n"
    with serving(make_service()) as (port, _):
        for answered, late in ((0, b""), (0, whole[:20]), (1, whole[:20])):
            # Only those that are to be late are hurried.
            monkeypatch.setattr(patience, 120 if answered else 0.1)
            with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
                for _ in range(answered):
                    connection.sendall(whole)
                    assert b"200 OK" in connection.recv(4096)
                monkeypatch.setattr(patience, 0.1)
                connection.sendall(late)
                assert connection.makefile("rb").read().count(b"HTTP") == 0


def test_an_answer_may_take_longer_than_headers(monkeypatch):
    monkeypatch.setattr("servers.http_server.HEADER_SECONDS", 3)
    service = StuckService()
    with serving(service) as (port, _), ThreadPoolExecutor(1) as pool:
        asked = pool.submit(HttpTransport(f"127.0.0.1:{port}", 120).exchange, payload())
        assert service.reached.wait(120)
        time.sleep(3.5)
        service.go.set()
        assert asked.result()


def test_a_request_that_the_end_cuts_off_is_no_failure_of_the_application(caplog):
    begun = threading.Event()

    async def waits(request):
        begun.set()
        await asyncio.Event().wait()

    listener = listen("127.0.0.1", 0)
    server = make_server(Starlette(routes=[Route("/", waits)]))
    server.config.timeout_graceful_shutdown = 0
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    with socket.create_connection(listener.getsockname(), timeout=600) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        assert begun.wait(600)
        server.should_exit = True
        answer = connection.makefile("rb").read()
    thread.join(600)
    assert answer.startswith(b"HTTP/1.1 503") and b"the server is being stopped" in answer
    assert not any(record.exc_info for record in caplog.records)
