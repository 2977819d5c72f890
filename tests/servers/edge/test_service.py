"""Edge servers over HTTP: who may ask and order, runs apart, and the LLM behind them."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import numpy as np
import pytest

from fedhlm_app.cli.edge import open_upstream
from fedhlm_app.transport.http_transport import HttpTransport
from hlm.transport import LinkDown
from hlm.wire import WireError
from hlm.wire.edge import EdgeQuery, encode_edge_query
from servers.access import DeviceTokens, Tokens
from servers.edge.config import EdgeConfig
from servers.edge.server import EdgeServer
from servers.edge.service import MOST_RUNS, ServedEdge
from tests.served import StuckService, make_service, payload, serving, serving_app
from tests.servers.test_access import bearer
from tests.servers.test_service import wait_until
from tests.streaming import Device, asked, own_text

EMBEDDINGS = np.random.default_rng(7).normal(size=(50, 32)).astype(np.float32)


def build(run: str, said) -> EdgeServer:
    return EdgeServer(said["cluster"], EMBEDDINGS, EdgeConfig(min_peers=1))


def question(client: int = 0) -> bytes:
    keys = np.zeros((1, 8), np.uint8)
    return encode_edge_query(EdgeQuery(client, 0, 50, keys, np.array([3])))


def order(port: int, run: str, what: str, said: object, token: str = "") -> httpx.Response:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return httpx.post(
        f"http://127.0.0.1:{port}/edge/{run}/v1/{what}", content=json.dumps(said), headers=headers
    )


BEGIN = {"cluster": 0, "members": [0, 1]}


def test_each_run_has_an_edge_server_and_members_of_its_own() -> None:
    served = ServedEdge(build)
    with serving_app(served.app) as port:
        link = HttpTransport(f"127.0.0.1:{port}/edge/1", 120)
        with pytest.raises(LinkDown, match="knows no such run"):
            link.exchange(question())
        assert order(port, "1", "begin", BEGIN).status_code == 200
        assert order(port, "2", "begin", {**BEGIN, "members": [5]}).status_code == 200
        # One that is told again stays, with other members.
        before = served.runs["1"]
        assert link.exchange(question()) == build("1", BEGIN).handle(question())
        assert order(port, "1", "begin", {**BEGIN, "members": [1]}).status_code == 200
        assert served.runs["1"] is before
        with pytest.raises(WireError, match="client=0 is no member"):
            link.exchange(question())
        for number in range(3, 3 + MOST_RUNS):
            order(port, str(number), "begin", BEGIN)
        assert len(served.runs) == MOST_RUNS and "1" not in served.runs
        assert order(port, "9", "end", {}).status_code == 200 and "9" not in served.runs
        page = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        assert f"fedhlm_runs {MOST_RUNS - 1}\n" in page and 'fedhlm_edge_rows{run="3"} 0' in page


@pytest.mark.parametrize(
    ("what", "said", "status"),
    [
        ("begin", {"cluster": 0}, 400),
        ("begin", [1], 400),
        ("begin", {"members": [0]}, 400),
        ("open", {"round": "x", "summed": False}, 400),
        ("dance", {}, 404),
    ],
)
def test_what_is_no_order_is_refused_and_changes_nothing(what, said, status) -> None:
    served = ServedEdge(build)
    with serving_app(served.app) as port:
        order(port, "1", "begin", BEGIN)
        assert order(port, "1" if what != "begin" else "2", what, said).status_code == status
        assert served.runs["1"].members == {0, 1} and served.runs["1"].cluster == 0


def test_a_device_may_ask_and_not_order(tmp_path) -> None:
    file = tmp_path / "devices.json"
    device, cloud = (DeviceTokens(file).issue(name) for name in ("phone", "cloud"))
    served = ServedEdge(build, Tokens(file=file))
    served.runs["1"] = build("1", BEGIN)
    with serving_app(served.app) as port:
        assert order(port, "1", "publish", {}).status_code == 401
        assert order(port, "1", "publish", {}, device).status_code == 403
        assert order(port, "1", "publish", {}, cloud).status_code == 200
        link = HttpTransport(f"127.0.0.1:{port}/edge/1", 120, token=device)
        assert link.exchange(question()) == build("1", BEGIN).handle(question())


def test_a_device_asks_as_one_client_and_no_other_device_as_that(tmp_path) -> None:
    file = tmp_path / "devices.json"
    tokens = {name: DeviceTokens(file).issue(name) for name in ("phone", "car")}
    served = ServedEdge(build, Tokens(file=file))
    served.runs["1"] = build("1", BEGIN)
    served.runs["1"].members = frozenset([0, 1])
    with serving_app(served.app) as port:
        phone, car = (
            HttpTransport(f"127.0.0.1:{port}/edge/1", 120, token=token) for token in tokens.values()
        )
        phone.exchange(question(0))
        # Neither another device's number nor another cluster's.
        for client, why in ((0, "is another device"), (2, "is no member of cluster 0")):
            with pytest.raises(WireError, match=f"client={client}.* {why}"):
                car.exchange(question(client))
        car.exchange(question(1))
        phone.exchange(question(0))
        page = httpx.get(f"http://127.0.0.1:{port}/metrics", headers=bearer(tokens["car"])).text
    assert 'fedhlm_refused_total{reason="invalid"} 2\n' in page
    assert "fedhlm_body_bytes 0\n" in page and "fedhlm_connections " in page


def test_bodies_at_an_edge_server_share_one_memory(monkeypatch) -> None:
    monkeypatch.setattr("servers.bodies.SHARE_SECONDS", 0)
    served = ServedEdge(build)
    served.bodies.held.most = 8000
    head = b"POST /edge/1/v1/exchange HTTP/1.1\r\nhost: x\r\ncontent-length: 4000\r\n\r\n"
    with serving_app(served.app) as port, ExitStack() as stack:

        def slow(source: str) -> socket.socket:
            caller = socket.create_connection(("127.0.0.1", port), 120, (source, 0))
            caller.sendall(head + bytes(3000))
            return stack.enter_context(caller)

        slow("127.0.0.1")
        wait_until(lambda: served.bodies.held.taken == 3000)
        # Another one of the same address, then one of another address.
        assert b"503" in slow("127.0.0.1").recv(64)
        slow("127.0.0.2")
        wait_until(lambda: served.bodies.held.taken == 6000)
        page = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        assert 'fedhlm_refused_total{reason="memory-share"} 1\n' in page


def test_the_llm_is_reached_through_the_edge_server() -> None:
    token = "of-the-llm-0123456789"
    with serving(make_service(), token=token) as (behind, _):
        upstream = open_upstream(f"127.0.0.1:{behind}", "")
        with serving_app(ServedEdge(build, upstream=upstream).app) as port:
            link = HttpTransport(f"127.0.0.1:{port}", 120, token=token)
            assert link.exchange(payload()) == make_service().handle(payload())
            assert link.stats()["model"] == "random"
            assert Device(link, asked()).read_all().texts() == [own_text([5, 9, 2], 21)]
            with pytest.raises(WireError, match="refused a request"):
                link.exchange(b"nonsense")
            with pytest.raises(LinkDown, match="token"):
                HttpTransport(f"127.0.0.1:{port}", 120).exchange(payload())
    served = ServedEdge(build, upstream=open_upstream("127.0.0.1:1", ""))
    with serving_app(served.app) as port:
        with pytest.raises(LinkDown, match="does not answer"):
            HttpTransport(f"127.0.0.1:{port}", 120).exchange(payload())
    assert served._onward.taken == 0


def test_who_floods_an_edge_server_leaves_others_their_way_to_the_llm(monkeypatch) -> None:
    monkeypatch.setattr("servers.bodies.SHARE_SECONDS", 0)
    service = StuckService()
    with serving(service) as (behind, llm):
        served = ServedEdge(build, upstream=open_upstream(f"127.0.0.1:{behind}", ""))
        served._onward.most = 4

        def asked(source: str) -> bytes:
            """The status line, once it is there."""
            caller = socket.create_connection(("127.0.0.1", port), 120, (source, 0))
            body = payload()
            head = f"POST /v1/exchange HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
            with caller:
                caller.sendall(head.encode() + body)
                return caller.recv(12)

        with serving_app(served.app) as port, ThreadPoolExecutor(7) as pool:
            flood = [pool.submit(asked, "127.0.0.1") for _ in range(6)]
            wait_until(lambda: sum(one.done() for one in flood) == 4)
            honest = pool.submit(asked, "127.0.0.2")
            wait_until(lambda: llm.waiting.taken == 3)
            service.go.set()
            assert honest.result(120) == b"HTTP/1.1 200"
            found = [one.result(120)[-3:] for one in flood]
        wait_until(lambda: served._onward.taken == 0)
    assert sorted(found) == [b"200"] * 2 + [b"503"] * 4
