"""Requests over loopback: binary HTTP against gRPC, for messages of 30 B and 10 kB.

``python -m benchmarks.transport`` writes ``benchmarks/out/transport.json``. Every transport has a
server process of its own that echoes what it gets, so the figures are those of the transport
alone; there is no model pair. Measured are a lone device's latency, the throughput of several
devices, processor time of both sides together (which a busy machine does not blur), and bytes on
the connection beyond the message's own: what a byte-exact wire is packed into.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import socket
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import psutil

from benchmarks._report import write_report

SIZES = {"30 B": 30, "10 kB": 10_000}
METHOD = "/fedhlm.LanguageModel/Exchange"
Send = Callable[[bytes], bytes]


def serve_http(port: int) -> None:
    """Starlette under uvicorn, set up as `fedhlm serve llm` has it."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from servers.http_server import bounded, listen, make_server
    from servers.service import EXCHANGE

    async def exchange(request: Request) -> Response:
        return Response(b"".join([chunk async for chunk in bounded(request, 1 << 20)]))

    app = Starlette(routes=[Route(EXCHANGE, exchange, methods=["POST"])])
    make_server(app).run(sockets=[listen("127.0.0.1", port)])


def serve_grpc(port: int) -> None:
    """A generic handler of raw bytes under grpc.aio: the engine's batcher is asynchronous too."""
    import grpc

    async def exchange(payload: bytes, context: Any) -> bytes:
        return payload

    async def main() -> None:
        server = grpc.aio.server()
        handler = grpc.unary_unary_rpc_method_handler(exchange)
        service, _, name = METHOD[1:].partition("/")
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {name: handler}),)
        )
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        await server.wait_for_termination()

    asyncio.run(main())


@contextmanager
def httpx_client(port: int):
    """One kept-alive connection of httpx."""
    import httpx

    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        headers = {"content-type": "application/octet-stream"}
        yield lambda payload: client.post("/v1/exchange", content=payload, headers=headers).content


@contextmanager
def link_client(port: int):
    """The project's own link: http.client, one packet a request, the fewest headers."""
    from fedhlm_app.transport.http_transport import HttpTransport

    link = HttpTransport(f"127.0.0.1:{port}", timeout=60)
    yield link.exchange
    link.close()


@contextmanager
def grpc_client(port: int):
    """One gRPC channel of its own connection."""
    import grpc

    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        call = channel.unary_unary(METHOD)
        yield lambda payload: call(payload, wait_for_ready=True, timeout=60)


TRANSPORTS = {
    "http, httpx": (serve_http, httpx_client),
    "http, own link": (serve_http, link_client),
    "grpc": (serve_grpc, grpc_client),
}


@contextmanager
def server(serve: Callable[[int], None]):
    """The port of a running server and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(port,), daemon=True)
    process.start()
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.join(10)


@contextmanager
def counting_proxy(port: int):
    """A port that leads to `port`, and the bytes that have gone up and down through it."""
    counts = [0, 0]
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, sink: socket.socket, way: int) -> None:
        # Either side may hang up at any time.
        with suppress(OSError):
            while data := source.recv(1 << 16):
                counts[way] += len(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def accept() -> None:
        device, _ = listener.accept()
        far = socket.create_connection(("127.0.0.1", port))
        for way, pair in enumerate([(device, far), (far, device)]):
            threading.Thread(target=pump, args=(*pair, way), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname()[1], counts
    listener.close()


def processor_seconds(process: psutil.Process) -> float:
    """User and system time of this process and the server's."""
    own, other = psutil.Process().cpu_times(), process.cpu_times()
    return own.user + own.system + other.user + other.system


def latencies(send: Send, size: int, count: int) -> np.ndarray:
    """Seconds of `count` requests one after the other, float64 [count]."""
    payload = bytes(size)
    seconds = np.empty(count)
    for index in range(count):
        begun = time.perf_counter()
        answer = send(payload)
        seconds[index] = time.perf_counter() - begun
        assert len(answer) == size
    return seconds


def throughput(open_client: Callable[[int], Any], port: int, size: int, count: int) -> float:
    """Requests per second of 8 devices, each with a connection and a thread of its own."""
    ready, payload = threading.Barrier(9), bytes(size)

    def device() -> None:
        with open_client(port) as send:
            send(payload)
            ready.wait()
            for _ in range(count // 8):
                send(payload)

    threads = [threading.Thread(target=device) for _ in range(8)]
    for thread in threads:
        thread.start()
    ready.wait()
    begun = time.perf_counter()
    for thread in threads:
        thread.join()
    return count // 8 * 8 / (time.perf_counter() - begun)


def overhead(open_client: Callable[[int], Any], port: int, size: int) -> dict[str, float]:
    """Bytes of a request and its reply beyond the messages, of TCP payload, once warm."""
    with counting_proxy(port) as (through, counts), open_client(through) as send:
        latencies(send, size, 20)
        before = list(counts)
        latencies(send, size, 50)
        time.sleep(0.1)
        return {way: (counts[i] - before[i]) / 50 - size for i, way in enumerate(["up", "down"])}


def first_answer(open_client: Callable[[int], Any], port: int) -> float:
    """Median seconds from nothing to the first answer; a ClientApp process does this once."""
    seconds = []
    for _ in range(9):
        begun = time.perf_counter()
        with open_client(port) as send:
            send(b"x")
            seconds.append(time.perf_counter() - begun)
    return float(np.median(seconds))


def main() -> None:
    """Measure all transports, turn by turn, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1500, help="of each kind")
    parser.add_argument("--turns", type=int, default=3, help="that the transports take in turn")
    given = parser.parse_args()
    each = max(8, given.requests // given.turns)
    figures: dict[str, Any] = {"requests": each * given.turns, "transports": {}}
    parts: dict[tuple[str, str], dict[str, list[Any]]] = {}
    for _ in range(given.turns):
        for name, (serve, open_client) in TRANSPORTS.items():
            with server(serve) as (port, process):
                extra = figures["transports"].setdefault(name, {})
                extra.setdefault("first_answer_ms", []).append(
                    1e3 * first_answer(open_client, port)
                )
                for label, size in SIZES.items():
                    found = parts.setdefault(
                        (name, label), {"seconds": [], "processor": [], "rate": []}
                    )
                    with open_client(port) as send:
                        latencies(send, size, 50)
                        begun = processor_seconds(process)
                        found["seconds"].append(latencies(send, size, each))
                        found["processor"].append(processor_seconds(process) - begun)
                    found["rate"].append(throughput(open_client, port, size, each))
                    found["overhead"] = [overhead(open_client, port, size)]
    for (name, label), found in parts.items():
        seconds = np.concatenate(found["seconds"])
        figures["transports"][name][label] = {
            "latency_ms": {
                "median": 1e3 * float(np.median(seconds)),
                "p99": 1e3 * float(np.quantile(seconds, 0.99)),
            },
            "processor_ms_per_request": 1e3 * sum(found["processor"]) / seconds.size,
            "requests_per_second": float(np.median(found["rate"])),
            "overhead_bytes": found["overhead"][0],
        }
    for extra in figures["transports"].values():
        extra["first_answer_ms"] = float(np.median(extra["first_answer_ms"]))
    path = write_report("transport", figures)
    print(path.read_text())


if __name__ == "__main__":
    main()
