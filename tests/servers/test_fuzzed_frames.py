"""Mutated frames of every kind through a real socket, and an honest device in between.

``python -m tests.servers.test_fuzzed_frames 50000`` sends as many to each server as it is told to:
two minutes of processor time for these, too long for the suite.
"""

from __future__ import annotations

import socket
import sys
from collections import Counter
from collections.abc import Iterator

import httpx
import numpy as np
import psutil
import pytest

from fedhlm_app.transport.http_transport import HttpTransport
from hlm.wire import encode_reply, encode_request
from hlm.wire.edge import EdgeQuery, EdgeShare, encode_edge_query
from hlm.wire.edge_probe import EdgeProbe, encode_probe
from hlm.wire.edge_update import EdgeUpdate, encode_update
from hlm.wire.stream import Control, Opening, encode_control, encode_opening
from servers.edge.service import ServedEdge
from tests.asking import request_of
from tests.hlm.test_wire_fuzz import mutated
from tests.hlm.wire_messages import random_reply, random_request
from tests.models import VOCAB
from tests.served import LIMITS, make_service, payload, serving, serving_app
from tests.servers.edge.test_service import BEGIN, build, question
from tests.wire_rows import Row

TOGETHER = 20
"""Requests that are sent before their answers are read."""

COUNTS = [600, pytest.param(8_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]


def llm_frames(random: np.random.Generator) -> Iterator[bytes]:
    request = random_request(random, most_sessions=2, vocabs=(VOCAB, VOCAB + 1))
    yield encode_request(request)
    yield encode_reply(random_reply(random, request), request)
    numbers = random.integers(0, 50, 3).tolist()
    row = Row(numbers[0], 0, random.integers(0, VOCAB, 3), numbers[1])
    asked = request_of("greedy", [row], client=numbers[2], identity=random.bytes(16))
    yield encode_opening(Opening(asked, numbers[0], 2, 2))
    yield encode_control(Control(numbers[0], 2, {0: 0}))


def edge_frames(random: np.random.Generator) -> Iterator[bytes]:
    client, count = int(random.integers(3)), int(random.integers(1, 4))
    keys, drafts = random.integers(0, 256, (count, 8), np.uint8), random.integers(0, 50, count)
    share = EdgeShare(keys=keys, tokens=drafts, verified=np.ones(count, np.bool_))
    yield encode_edge_query(EdgeQuery(client, count, 50, keys, drafts, share=share))
    yield encode_probe(EdgeProbe(client, np.unique(random.integers(0, 1000, count))))
    yield encode_update(EdgeUpdate(client, 1, 3, random.normal(size=count)))


def fuzzed(kinds, count: int) -> Iterator[bytes]:
    random, made = np.random.default_rng(count), 0
    while made < count:
        frames = [frame for frame in kinds(random) if len(frame) < LIMITS.max_bytes - 8]
        for turn in range(min(20 * len(frames), count - made)):
            yield mutated(random, frames[turn % len(frames)])
            made += 1


def statuses(port: int, path: str, bodies: list[bytes], kept: socket.socket) -> list[int]:
    """What is answered to requests that are sent at once on a connection that is kept."""
    head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: "
    kept.sendall(b"".join(f"{head}{len(one)}\r\n\r\n".encode() + one for one in bodies))
    found, answers = [], kept.makefile("rb")
    for _ in bodies:
        found.append(int(answers.readline().split()[1]))
        length = 0
        while (line := answers.readline()) != b"\r\n":
            name, _, value = line.partition(b":")
            length = int(value) if name == b"content-length" else length
        answers.read(length)
    return found


def flooded(port: int, path: str, kinds, count: int, honest) -> Counter[int]:
    """Send so many frames; an honest device asks after each some of them."""
    found, begun = Counter(), 0
    frames = fuzzed(kinds, count)
    with socket.create_connection(("127.0.0.1", port), timeout=120) as kept:
        while bodies := [body for _, body in zip(range(TOGETHER), frames, strict=False)]:
            found.update(statuses(port, path, bodies, kept))
            honest()
            if found.total() == count // 5:
                begun = psutil.Process().memory_info().rss
    assert psutil.Process().memory_info().rss - begun < 128 << 20
    return found


def page(port: int) -> str:
    return httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text


@pytest.mark.parametrize("count", COUNTS)
def test_the_llm_refuses_what_means_nothing_and_answers_others(count):
    good, service = payload(client=7), make_service()
    answer = make_service().handle(good)
    with serving(service) as (port, served):
        link = HttpTransport(f"127.0.0.1:{port}", timeout=120)

        def honest() -> None:
            assert link.exchange(good) == answer

        found = flooded(port, "/v1/exchange", llm_frames, count, honest)
        link.close()
        assert found.keys() == {200, 400} and found.total() == count
        assert f'fedhlm_refused_total{{reason="invalid"}} {found[400]}\n' in page(port)
        assert served.waiting.taken == served.bodies.held.taken == len(service.streams) == 0
        assert len(service.texts) <= 2 * service.engine.max_sessions + 1
    assert min(found.values()) > count // 20


@pytest.mark.parametrize("count", COUNTS)
def test_an_edge_server_does_too(count):
    served = ServedEdge(build)
    served.runs["1"] = build("1", BEGIN)
    with serving_app(served.app) as port:
        link = HttpTransport(f"127.0.0.1:{port}/edge/1", timeout=120)
        found = flooded(
            port, "/edge/1/v1/exchange", edge_frames, count, lambda: link.exchange(question(1))
        )
        link.close()
        assert found.keys() == {200, 400} and found.total() == count
        assert f'fedhlm_refused_total{{reason="invalid"}} {found[400]}\n' in page(port)
    assert served.bodies.held.taken == 0
    assert served.runs["1"].memory < 64 << 20
    assert min(found.values()) > count // 20


def test_openings_that_mean_nothing_open_no_stream_that_stays(monkeypatch):
    monkeypatch.setattr("servers.stream.CREDIT_SECONDS", 0.02)
    service = make_service()
    with serving(service) as (port, served), httpx.Client(timeout=120, trust_env=False) as client:
        found = Counter(
            client.post(f"http://127.0.0.1:{port}/v1/stream", content=frame).status_code
            for frame in fuzzed(lambda random: [*llm_frames(random)][2:3], 200)
        )
        assert found.keys() == {200, 400} and min(found.values()) > 10
        link = HttpTransport(f"127.0.0.1:{port}", timeout=120)
        assert link.exchange(payload(client=7)) == make_service().handle(payload(client=7))
        link.close()
    assert len(service.streams) == served.waiting.taken == 0


if __name__ == "__main__":
    test_the_llm_refuses_what_means_nothing_and_answers_others(int(sys.argv[1]))
    test_an_edge_server_does_too(int(sys.argv[1]))
