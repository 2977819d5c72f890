"""The edge tier in a real run that learns its clusters: an edge server dies and comes back."""

from __future__ import annotations

import os
import signal

import pytest

from tests.e2e.test_run import follow, ray_processes

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(1800)]


def test_a_run_that_learns_its_clusters_outlives_an_edge_server(tmp_path):
    killed = []

    def kill_edge(root: int) -> None:
        for process in ray_processes(root, "EdgeActor")[:1]:
            killed.append(process.pid)
            os.kill(process.pid, signal.SIGKILL)

    words = [
        "--rounds", "4", "--set", "learning=paper", "--set", "partition=by-class",
        "--set", "cluster-by=profile", "--set", "recluster-every=0", "--set", "tokens-per-round=10",
        "--set", "peer-mode=context", "--set", "opportunistic=false", "--set", "workers=1",
    ]  # fmt: skip
    code, output, folder = follow(tmp_path, words, kill_edge)
    assert code == 0, output
    assert killed
    summary = folder.summary()
    assert summary["rounds"] == 4
    assert summary["tokens"] == 4 * 4 * 10
    assert summary["resolution"]["unresolved"] == 0
    found = summary["clustering"]
    assert found["method"] == "profile" and found["clusterings"] == 1
    assert sorted(found["map"]) == ["0", "1", "2", "3"]
    assert set(found["map"].values()) == {0, 1}
    # One topic a client and a hundred items a topic: two to a cluster give a half, three and one
    # as well, and no two clients are of one group.
    assert found["purity"] == 0.5
    assert found["adjusted_rand_index"] == 0.0
    assert found["refused"] == {} and found["silent"] == []
    assert found["bytes"] > 4 * 4568
    # Edge servers answer the members of the new clusters too, the one that came back with them.
    assert folder.metrics()[-1]["bytes"]["edge"] > 0
    assert "purity" in (folder.path / "report.html").read_text()
    # Its cluster's updates are lost in the round it dies in, if any were there, and no others.
    assert summary["hierarchy"]["updates"] > 0
    lost = set().union(*(line["failed"] for line in folder.metrics()))
    assert len({int(client) % summary["clusters"] for client in lost}) <= 1
