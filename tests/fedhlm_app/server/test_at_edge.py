"""Whole runs in this process whose edge servers form the means of their clusters."""

from __future__ import annotations

import pytest

from fedhlm_app.results.report.rows import text_lines
from fedhlm_app.results.report.sections import cards
from fedhlm_app.settings import SettingsError
from tests.fedhlm_app.in_process import LocalEdges, Runner, settings_of

TIERS = {"peer_mode": "context", "initial_threshold": 0.3, "tokens_per_round": 20, "rounds": 2}


@pytest.fixture(scope="module")
def runner():
    with pytest.MonkeyPatch.context() as patch:
        yield Runner(patch)


@pytest.mark.parametrize(
    "learning",
    [
        {"learning": "balanced", "strategy": "fedprox", "local_steps": 2},
        {
            "learning": "certified-high-probability", "fidelity_budget": 0.4, "confidence": 0.3,
        },
        {
            "learning": "certified", "workload": "score", "fidelity_budget": 0.3,
            "personalisation": "cluster", "calibration_rounds": 1,
        },
    ],
    ids=["fedprox", "certified generation", "certified sums"],
)  # fmt: skip
def test_thresholds_are_those_of_a_cloud_that_sees_every_update(runner, tmp_path, learning):
    kept = []
    for where in ("edge", "cloud"):
        _, folder, grid = runner.run(tmp_path / where, **{**TIERS, **learning}, average_at=where)
        summary = folder.summary()
        kept.append({key: summary[key] for key in ("threshold", "resolution", "bytes", "tokens")})
        kept[-1]["rounds"] = [line["threshold"] for line in folder.metrics()]
        told = [reply for reply in grid.replies if "metrics" in reply.content.metric_records]
        policies = [reply for reply in told if reply.content.array_records]
        lists = [
            1 for reply in told for value in reply.content.metric_records["metrics"].values()
            if isinstance(value, list)
        ]  # fmt: skip
        if where == "cloud":
            assert summary["hierarchy"] is None and policies
            continue
        # What is learned does not pass through Flower's replies.
        assert not policies and not lists
        tiers = summary["hierarchy"]
        rounds = summary["rounds"]
        assert (tiers["updates"], tiers["aggregates"]) == (4 * rounds, 2 * rounds)
        assert tiers["device_edge"] > 0 and tiers["edge_cloud"] > 0
        lines = folder.metrics()
        for name in ("device_edge", "edge_cloud"):
            assert sum(line["hierarchy"][name] for line in lines) == tiers[name]
        assert any("on to the cloud" in line for line in text_lines(summary))
        assert "updates to edge servers" in " ".join(words for _, words in cards(summary))
    assert kept[0] == kept[1]


def test_an_edge_server_that_dies_costs_its_clusters_round(runner, tmp_path, monkeypatch):
    collect = LocalEdges.collect

    def dies(self, number):
        found = collect(self, number)
        return {1: found[1]} if number == 2 else found

    monkeypatch.setattr(LocalEdges, "collect", dies)
    _, folder, _ = runner.run(tmp_path, **TIERS, learning="balanced", personalisation="cluster")
    first, second = folder.metrics()
    assert second["replies"] == 4 and second["tokens"] == first["tokens"]
    assert second["failed"] == dict.fromkeys(("0", "2"), "its edge server lost the update")
    assert [second["weights"][str(client)] > 0 for client in range(4)] == [False, True, False, True]
    before, after = first["threshold"]["clusters"], second["threshold"]["clusters"]
    assert before["0"] == after["0"] and before["1"] != after["1"]
    assert folder.summary()["failed"] == 2


def test_a_broken_eq_7_changes_the_run(runner, tmp_path, monkeypatch):
    from servers.edge.averaging import Averaging

    def run(name):
        return runner.run(tmp_path / name, **TIERS, learning="balanced")[1].summary()["threshold"]

    right, mean = run("right"), Averaging.collect

    def first_only(self, number):
        self._taken = dict(sorted(self._taken.items())[:1])
        return mean(self, number)

    monkeypatch.setattr(Averaging, "collect", first_only)
    assert run("wrong")["global"] != right["global"]


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({"peer_mode": "off"}, "set peer-mode=context"),
        ({"strategy": "scaffold"}, "set strategy=fedavg"),
        ({"strategy": "fednova"}, "set strategy=fedavg"),
        ({"edge_rule": "fedmedian"}, "set edge-rule=weighted-mean"),
        ({"personalisation": "shrunk"}, "set personalisation=cluster"),
        ({"privacy": "central"}, "set privacy=local"),
        ({"recluster_every": 1, "cluster_by": "profile"}, "set recluster-every=0"),
    ],
)
def test_what_edge_servers_cannot_average_is_refused_by_name(changes, needed):
    given = {"peer_mode": "context", "learning": "balanced", "average_at": "edge", **changes}
    with pytest.raises(SettingsError, match=f"'average-at' = 'edge'.*{needed}"):
        settings_of(**given)
