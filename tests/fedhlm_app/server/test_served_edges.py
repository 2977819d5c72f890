"""Runs whose edge servers are reached over HTTP end as those do that have them within."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from fedhlm_app.hosting.edge import edge_of_order
from fedhlm_app.server.served_edges import ServedEdges, check_edges
from fedhlm_app.settings import Settings, SettingsError
from servers.edge.service import ServedEdge
from tests.fedhlm_app.in_process import Runner
from tests.served import make_service, serving, serving_app

PEERS = {
    "clients": 4, "clusters": 2, "rounds": 3, "tokens_per_round": 20, "tokens_per_prompt": 5,
    "peer_mode": "context", "inter_cluster": True, "learning": "balanced", "context_gate": 0.9,
    "reuse_gate": 0.9, "opportunistic": False,
}  # fmt: skip
KEPT = ("tokens", "resolution", "threshold", "bytes", "trr", "hierarchy")


@pytest.fixture
def edges():
    """Two edge servers, and their addresses as the setting wants them."""
    with ExitStack() as stack:
        served = [ServedEdge(edge_of_order) for _ in range(2)]
        ports = [stack.enter_context(serving_app(one.app)) for one in served]
        yield served, ",".join(f"127.0.0.1:{port}" for port in ports)


def result(folder) -> dict:
    summary = folder.summary()
    return {name: summary.get(name) for name in KEPT} | {
        "rounds": [line["threshold"] for line in folder.metrics()]
    }


def test_edge_processes_give_the_run_of_edge_servers_within(tmp_path, monkeypatch, edges) -> None:
    served, addresses = edges
    runner = Runner(monkeypatch)
    _, within, _ = runner.run(tmp_path / "within", **PEERS)
    _, over_http, _ = runner.run(tmp_path / "http", edge_addresses=addresses, **PEERS)
    assert result(over_http) == result(within)
    resolution = result(within)["resolution"]
    assert resolution["peer"] + resolution["edge"] > 0  # there was something to decide
    assert [list(one.runs) for one in served] == [["1"], ["1"]]
    assert all(server.stats.rows > 0 for one in served for server in one.runs.values())
    runner.edges.stop()
    assert [one.runs for one in served] == [{}, {}]


def test_an_edge_server_that_starts_again_is_told_anew(edges) -> None:
    served, addresses = edges
    settings = Settings.from_sources(
        {"clients": 4, "clusters": 2, "peer-mode": "context", "edge-addresses": addresses}, {}
    )
    there = ServedEdges(settings, 7)
    there.ensure([0, 0, 1, 1])
    served[0].runs.clear()
    there.open(1, set())
    assert set(there.collect(1)) == {1}
    there.ensure([0, 1, 0, 1])
    assert [one.runs["7"].members for one in served] == [{0, 2}, {1, 3}]
    assert [one.runs["7"].cluster for one in served] == [0, 1]
    there.publish()
    assert set(there.collect(1)) == {0, 1}


def test_what_is_no_edge_server_is_refused_by_name(edges) -> None:
    addresses = edges[1].split(",")

    def at(*where: str) -> Settings:
        given = {"clusters": len(where), "peer-mode": "context", "edge-addresses": ",".join(where)}
        return Settings.from_sources(given, {})

    check_edges(at(*addresses))
    with serving(make_service()) as (port, _):
        with pytest.raises(SettingsError, match=rf"'edge-addresses': .*127.0.0.1:{port}"):
            check_edges(at(addresses[0], f"127.0.0.1:{port}"))
    with pytest.raises(SettingsError, match=r"no answer from the edge server 127\.0\.0\.1:1:"):
        check_edges(at("127.0.0.1:1"))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"peer-mode": "off"}, "nobody asks an edge server; set peer-mode=context"),
        ({"clusters": 3}, "2 addresses; each cluster has one"),
        ({"edge-addresses": "here,a:1"}, "setting 'edge-addresses' = 'here' is not allowed"),
    ],
)
def test_addresses_that_no_run_could_use_are_refused(given, says) -> None:
    right = {"clusters": 2, "peer-mode": "context", "edge-addresses": "a:1,b:2"}
    with pytest.raises(SettingsError) as error:
        Settings.from_sources({**right, **given}, {})
    assert says in str(error.value)
