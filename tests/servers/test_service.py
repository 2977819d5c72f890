"""The LLM over HTTP: right bytes, named refusals, and links that mend."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection

import numpy as np
import pytest
from typer.testing import CliRunner

from clients.policy import FixedPolicy
from fedhlm_app.cli import app
from fedhlm_app.transport.http_transport import HttpTransport
from fedhlm_app.transport.transports import DirectTransport
from hlm.transport import LinkDown
from hlm.wire import Request, Status, WireError, decode_reply, encode_request
from servers.llm import LanguageModelService
from servers.service import ServiceOptions
from tests.asking import request_of
from tests.models import VOCAB, random_model
from tests.routed import build, make_prompts, new_part
from tests.served import LIMITS, StuckService, make_service, payload, serving
from tests.wire_rows import Row, rows_of, told


@contextmanager
def linked(service: LanguageModelService, **options) -> Iterator[HttpTransport]:
    with serving(service, **options) as (port, _):
        link = HttpTransport(f"127.0.0.1:{port}", timeout=120)
        try:
            yield link
        finally:
            link.close()


def asked(port: int, method: str, path: str, body: bytes = b"") -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request(method, path, body)
    answer = connection.getresponse()
    found = answer.status, answer.read().decode(errors="replace")
    connection.close()
    return found


def routed(transport, policy, prompts, count):
    """A device whose way to the LLM is the given transport."""
    setup = build(random_model("llama", 1), random_model("llama", 2), policy)
    setup.uplink.link.transport = transport
    return setup.generate(prompts, count)


def test_bytes_are_those_of_the_service_itself():
    with linked(make_service()) as link:
        over_http = [link.exchange(payload(s, draft=s)) for s in range(5)]
    service = make_service()
    assert over_http == [service.handle(payload(s, draft=s)) for s in range(5)]


def test_text_and_counted_bytes_are_those_of_a_link_within_the_process():
    prompts = make_prompts(VOCAB, 4)
    never = FixedPolicy(kept=False)
    with serving(make_service()) as (port, served):
        link = HttpTransport(f"127.0.0.1:{port}", timeout=120)
        texts, records, traffic = routed(link, never, prompts, 6)
        link.close()
    direct, same, counted = routed(DirectTransport(make_service()), never, prompts, 6)
    assert [new_part(texts, i) for i in range(4)] == [new_part(direct, i) for i in range(4)]
    assert records.stage_counts() == same.stage_counts()
    assert (traffic.uplink, traffic.downlink) == (counted.uplink, counted.downlink)
    assert (served.counts["bytes-uplink"], served.counts["bytes-downlink"]) == (
        traffic.uplink,
        traffic.downlink,
    )


def test_an_invalid_request_is_refused_with_its_reason():
    with linked(make_service()) as link:
        with pytest.raises(WireError, match="refused a request"):
            link.exchange(b"\x00garbage")
        other = request_of("greedy", [Row(0, 0, np.array([1]), 2)], vocab=2 * VOCAB)
        with pytest.raises(WireError, match="the model's vocabulary has 64 tokens"):
            link.exchange(encode_request(other))
        # The connection is still good.
        assert link.exchange(payload()) == make_service().handle(payload())


@pytest.mark.parametrize("size", [LIMITS.max_bytes + 1, 1 << 21])
def test_a_body_that_is_too_large_is_refused_before_it_is_read(size):
    with linked(make_service()) as link, pytest.raises(WireError, match="at most 4096 bytes"):
        link.exchange(bytes(size))


def test_a_body_of_unknown_length_is_bounded_too():
    with serving(make_service()) as (port, _):
        connection = HTTPConnection("127.0.0.1", port, timeout=120)
        chunks = (bytes(1000) for _ in range(10))
        connection.request("POST", "/v1/exchange", chunks, encode_chunked=True)
        assert connection.getresponse().status == 413
        connection.close()


def test_a_body_that_never_comes_is_not_waited_for():
    with serving(make_service(), body_seconds=0.2) as (port, _):
        with socket.create_connection(("127.0.0.1", port), timeout=120) as half:
            half.sendall(b"POST /v1/exchange HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc")
            assert half.recv(64).startswith(b"HTTP/1.1 408")
        # Head and body of this one come together, however busy the machine is.
        link = HttpTransport(f"127.0.0.1:{port}", timeout=120)
        assert link.exchange(payload()) == make_service().handle(payload())
        link.close()


def test_a_caller_that_hangs_up_does_no_harm():
    with serving(make_service()) as (port, _):
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", port), timeout=120) as half:
                half.sendall(b"POST /v1/exchange HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n")
        assert asked(port, "POST", "/v1/exchange", payload())[0] == 200


def test_a_full_queue_answers_busy_and_recovers():
    service = StuckService()
    with (
        serving(service, queue=1) as (port, served),
        ThreadPoolExecutor(1) as pool,
    ):
        first = HttpTransport(f"127.0.0.1:{port}", timeout=120)
        answer = pool.submit(first.exchange, payload())
        assert service.reached.wait(120)
        second = HttpTransport(f"127.0.0.1:{port}", timeout=120)
        with pytest.raises(LinkDown, match="503: busy: 1 requests wait"):
            second.exchange(payload(1))
        service.go.set()
        assert answer.result(120) == make_service().handle(payload())
        assert second.exchange(payload(1)) == make_service().handle(payload(1))
        assert served.waiting.taken == 0
        assert served.counts["503"] == 1
        first.close()
        second.close()


def test_bodies_that_trickle_in_share_one_memory():
    head = b"POST /v1/exchange HTTP/1.1\r\nhost: x\r\ncontent-length: 4000\r\n\r\n"
    with serving(make_service(), memory_bytes=20_000) as (port, served), ExitStack() as stack:
        callers = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=120))
            for _ in range(4)
        ]
        for caller in callers[:3]:
            caller.sendall(head + bytes(3000))
        wait_until(lambda: served.bodies.held.taken == 9000)
        callers[3].sendall(head + bytes(3000))
        assert callers[3].recv(64).startswith(b"HTTP/1.1 503")
        for caller in callers:
            caller.close()
        wait_until(lambda: served.bodies.held.taken == 0)
        assert asked(port, "POST", "/v1/exchange", payload())[0] == 200


def wait_until(what) -> None:
    deadline = time.monotonic() + 120
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_engine_that_is_too_slow_is_busy():
    service = StuckService()
    with linked(service, answer_seconds=0.2) as link:
        with pytest.raises(LinkDown, match="no answer within"):
            link.exchange(payload())
        service.go.set()


def test_an_engine_that_fails_says_so_and_goes_on():
    service = make_service()

    def broken(feeds):
        raise RuntimeError("out of memory")

    service.engine.score = broken
    with linked(service) as link:
        for _ in range(2):
            with pytest.raises(LinkDown, match=r"answered 500: the engine failed.*out of memory"):
                link.exchange(payload())


def test_requests_that_wait_together_share_passes_unless_told_otherwise():
    for most, shared in ((64, True), (1, False)):
        service = StuckService()
        with serving(service, most=most) as (port, served), ThreadPoolExecutor(9) as pool:
            link = HttpTransport(f"127.0.0.1:{port}", timeout=120)
            answers = [pool.submit(link.exchange, payload(client=0))]
            assert service.reached.wait(120)
            answers += [pool.submit(link.exchange, payload(client=c)) for c in range(1, 9)]
            wait_until(lambda: served.waiting.taken == 9)
            service.go.set()
            found = [answer.result(120) for answer in answers]
            link.close()
        assert found == [make_service().handle(payload(client=c)) for c in range(9)]
        passes = service.engine.stats.passes
        assert passes < 9 if shared else passes == 9


def test_threads_may_share_a_link():
    with linked(make_service()) as link, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda s: link.exchange(payload(s, draft=s % VOCAB)), range(60)))
    service = make_service()
    assert found == [service.handle(payload(s, draft=s % VOCAB)) for s in range(60)]


def test_one_connection_serves_a_whole_text():
    with serving(make_service()) as (port, _), counted_connections(port) as (through, opened):
        link = HttpTransport(f"127.0.0.1:{through}", timeout=120)
        for session in range(20):
            link.exchange(payload(session))
        assert opened == [1]
        link.close()


@contextmanager
def counted_connections(port: int) -> Iterator[tuple[int, list[int]]]:
    """A port that leads to another one, and how many connections were opened through it."""
    opened = [0]
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

        def pump(source: socket.socket, sink: socket.socket) -> None:
            # Either side may hang up at any time.
            with suppress(OSError):
                while data := source.recv(1 << 16):
                    sink.sendall(data)
                sink.shutdown(socket.SHUT_WR)

        def accept() -> None:
            while True:
                try:
                    near, _ = listener.accept()
                except OSError:
                    return
                opened[0] += 1
                far = socket.create_connection(("127.0.0.1", port))
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1], opened


def test_after_a_restart_the_prefix_is_sent_again_and_the_text_is_the_same():
    """A server that lost every session in mid-text: no token is lost, no failure is counted."""
    prompts, never = make_prompts(VOCAB, 3), FixedPolicy(kept=False)
    with ExitStack() as second, ExitStack() as first:
        port, _ = first.enter_context(serving(make_service()))
        link = HttpTransport(f"127.0.0.1:{port}", timeout=120)

        class Restarting:
            calls = 0

            def exchange(self, body: bytes) -> bytes:
                self.calls += 1
                if self.calls == 3:
                    first.close()
                    second.enter_context(serving(make_service(), port))
                return link.exchange(body)

        texts, records, traffic = routed(Restarting(), never, prompts, 6)
        link.close()
    direct, same, counted = routed(DirectTransport(make_service()), never, prompts, 6)
    assert [new_part(texts, i) for i in range(3)] == [new_part(direct, i) for i in range(3)]
    assert records.stage_counts() == same.stage_counts()
    assert traffic.failures == 0
    # One more exchange: "prefix needed" and the whole text.
    assert traffic.messages == counted.messages + 1
    assert traffic.uplink > counted.uplink


def test_a_stale_server_asks_for_the_prefix():
    with linked(make_service()) as link:
        reply = decode_reply(
            link.exchange(payload(tokens=(4,), start=12)),
            Request("greedy", VOCAB, rows_of([Row(0, 12, np.array([4]), 7)]), feedback=True),
        )
    assert told(reply)[0].status == Status.PREFIX_NEEDED


def test_no_server_is_a_link_down():
    with socket.socket() as kept:
        kept.bind(("127.0.0.1", 0))  # nobody else listens there meanwhile
        port = kept.getsockname()[1]
        with pytest.raises(LinkDown, match=f"no answer from the LLM server 127.0.0.1:{port}"):
            HttpTransport(f"127.0.0.1:{port}", timeout=120).exchange(payload())


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ncontent-len",
        b"220 mail.example.org ESMTP\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9000000000\r\n\r\n",
    ],
)
def test_a_connection_that_is_cut_or_no_http_is_a_link_down(answer):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def once() -> None:
            near, _ = listener.accept()
            with near:
                near.recv(4096)
                near.sendall(answer)

        thread = threading.Thread(target=once)
        thread.start()
        link = HttpTransport(f"127.0.0.1:{listener.getsockname()[1]}", timeout=120)
        with pytest.raises(LinkDown):
            link.exchange(payload())
        thread.join()


def test_a_silent_server_is_given_up_after_the_timeout_and_asked_only_once():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        link = HttpTransport(f"127.0.0.1:{listener.getsockname()[1]}", timeout=0.3)
        begun = time.monotonic()
        with pytest.raises(LinkDown, match="timed out"):
            link.exchange(payload())
        assert time.monotonic() - begun < 100


def test_health_and_counters():
    with serving(make_service(), most=1) as (port, _):
        assert asked(port, "GET", "/health") == (200, '{"status":"ok"}')
        body = payload()
        for _ in range(3):
            asked(port, "POST", "/v1/exchange", body)
        asked(port, "POST", "/v1/exchange", b"\x00")
        status, text = asked(port, "GET", "/v1/stats")
        stats = json.loads(text)
        assert asked(port, "GET", "/v1/exchange")[0] == 405
        assert asked(port, "GET", "/nothing")[0] == 404
    assert status == 200
    assert stats["answers"] == {"200": 3, "400": 1}
    assert stats["bytes"]["uplink"] == 3 * len(body)
    assert stats["engine"]["passes"] == 3
    assert (stats["model"], stats["vocab"], stats["waiting"]) == ("random", VOCAB, 0)


def test_a_stopped_server_answers_what_it_has_taken_in():
    service = StuckService()
    with ThreadPoolExecutor(1) as pool:
        with serving(service) as (port, _):
            link = HttpTransport(f"127.0.0.1:{port}", timeout=120)
            answer = pool.submit(link.exchange, payload())
            assert service.reached.wait(120)
            threading.Timer(0.5, service.go.set).start()
        assert answer.result(120) == make_service().handle(payload())
        link.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"wait": -1},
        {"most": 0},
        {"queue": 0},
        {"memory_bytes": 0},
        {"body_seconds": 0},
        {"answer_seconds": -1},
    ],
)
def test_options_out_of_range_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ServiceOptions(**wrong)


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "fedhlm_app", "serve", "llm", *words]


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_and_stops_when_told(stop):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command("--port", "0", "--sessions", "3"),
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("serving builtin at 127.0.0.1:")
        assert "3 sessions" in line
        port = int(line.split()[3].rpartition(":")[2])
        assert asked(port, "GET", "/health")[0] == 200
        process.send_signal(stop)
        assert process.wait(120) == 0
        assert process.stdout.read() == ""
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_the_command_refuses_what_it_cannot_do():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            command("--port", port), capture_output=True, text=True, timeout=120, check=False
        )
    assert done.returncode == 2
    assert "in use" in done.stderr
    for words, names in (
        (("--sessions", "0"), "llm-sessions"),
        (("--tls-cert", "/no/file"), "--tls-cert = '/no/file'"),
        (("--tls-key", "/no/file"), "--tls-key = '/no/file': needs the certificate too"),
        (("--token-file", "/no/file"), "--token-file = '/no/file': cannot be read"),
    ):
        refused = CliRunner().invoke(app, ["serve", "llm", *words])
        assert refused.exit_code == 2
        assert names in refused.stderr
