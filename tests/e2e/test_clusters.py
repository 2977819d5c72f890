"""Clusters learned in a real run, from profiles that client processes send."""

from __future__ import annotations

import pytest

from tests.e2e.test_run import run

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(400)]


def test_a_run_learns_its_clusters(tmp_path):
    words = [
        "--rounds", "2", "--set", "partition=by-class", "--set", "cluster-by=profile",
        "--set", "recluster-every=1", "--set", "tokens-per-round=10",
        "--set", "peer-mode=context", "--set", "opportunistic=false", "--set", "workers=1",
    ]  # fmt: skip
    done, folder = run(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    summary = folder.summary()
    assert summary["tokens"] == 4 * 2 * 10
    found = summary["clustering"]
    assert found["method"] == "profile" and found["clusterings"] == 2
    assert sorted(found["map"]) == ["0", "1", "2", "3"]
    assert set(found["map"].values()) == {0, 1}
    # One topic a client and a hundred items a topic: two to a cluster give a half, three and one
    # as well, and no two clients are of one group.
    assert found["purity"] == 0.5
    assert found["adjusted_rand_index"] == 0.0
    assert found["refused"] == {} and found["silent"] == []
    assert found["bytes"] > 2 * 4 * 4568
    # Edge servers answer the members of the new clusters too.
    assert summary["resolution"]["unresolved"] == 0
    assert folder.metrics()[-1]["bytes"]["edge"] > 0
    assert "purity" in (folder.path / "report.html").read_text()
