"""The edge tier in a real run: an edge server dies in mid-round and comes back."""

from __future__ import annotations

import os
import signal

import pytest

from tests.e2e.test_run import follow, ray_processes

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(400)]


def test_a_run_outlives_an_edge_server(tmp_path):
    killed = []

    def kill_edge(root: int) -> None:
        for process in ray_processes(root, "EdgeActor")[:1]:
            killed.append(process.pid)
            os.kill(process.pid, signal.SIGKILL)

    words = [
        "--rounds", "5", "--set", "peer-mode=context", "--set", "opportunistic=false",
        "--set", "workers=1",
    ]  # fmt: skip
    code, output, folder = follow(tmp_path, words, kill_edge)
    assert code == 0, output
    assert killed
    summary = folder.summary()
    assert summary["rounds"] == 5
    assert summary["tokens"] == 4 * 5 * 30
    assert summary["resolution"]["unresolved"] == 0
    # It came back: devices talked to edge servers in the last round as well.
    assert folder.metrics()[-1]["bytes"]["edge"] > 0
    # Its cluster's updates are lost in the round it dies in, if any were there, and no others.
    assert summary["hierarchy"]["updates"] > 0
    lost = set().union(*(line["failed"] for line in folder.metrics()))
    assert len({int(client) % summary["clusters"] for client in lost}) <= 1
