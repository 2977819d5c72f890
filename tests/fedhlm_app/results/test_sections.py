"""Tables of a report."""

from __future__ import annotations

from fedhlm_app.results.report.sections import clients


def test_clients_that_were_away_or_failed_are_in_the_table():
    found = {
        "cluster": 0, "resolution": {"local": 3}, "uplink": 1, "downlink": 2, "wrong": 0,
        "known": 3,
    }  # fmt: skip
    metrics = [{"by_client": {"0": found}, "absent": [1, 10], "failed": {"0": "no reply"}}]
    heads, table = clients(metrics, None)
    names = [name for name, _ in heads]
    lost = names.index("replies lost")
    assert [row[lost][0] for row in table] == [1, 1, 1]
    assert [row[0][0] for row in table] == [0, 1, 10]
