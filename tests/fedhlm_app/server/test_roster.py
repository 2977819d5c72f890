"""Who of a run's clients is there, and that it is said."""

from __future__ import annotations

import logging

import pytest
from flwr.app import Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedhlm_app.server import roster
from fedhlm_app.server.roster import Roster, numbers
from fedhlm_app.settings import SettingsError


class Grid:
    """Nodes 10, 11, ... that are clients 0, 1, ...; each comes when its time has come."""

    def __init__(self, times: dict[int, float]) -> None:
        self.times, self.now = times, 0.0

    def get_node_ids(self) -> list[int]:
        return [10 + client for client, time in self.times.items() if time <= self.now]

    def send_and_receive(self, messages, *, timeout=None):
        return [
            Message(
                RecordDict({"metrics": MetricRecord({"client": one.metadata.dst_node_id - 10})}),
                reply_to=one,
            )
            for one in messages
        ]


@pytest.fixture
def grid(monkeypatch):
    made = Grid({0: 0.0, 1: 20.0, 2: 40.0, 3: 1000.0})

    def sleep(seconds: float) -> None:
        made.now += seconds

    monkeypatch.setattr(roster.time, "monotonic", lambda: made.now)
    monkeypatch.setattr(roster.time, "sleep", sleep)
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    return made


def test_it_waits_for_all_and_says_for_whom(grid, caplog):
    caplog.set_level(logging.INFO, "flwr")
    assert sorted(Roster(3).wait(grid)) == [0, 1, 2]
    assert 40 <= grid.now < 41
    said = [record.message for record in caplog.records]
    assert [line.split(",")[0] for line in said] == [
        "1 of 3 clients are here",
        "2 of 3 clients are here",
        "3 of 3 clients are here",
    ]


def test_a_simulation_of_too_few_nodes_ends_at_once(grid, monkeypatch):
    monkeypatch.setattr(roster, "InMemoryGrid", Grid)
    with pytest.raises(SettingsError, match="'clients' = 3: this simulation has 1 SuperNodes"):
        Roster(3).wait(grid)
    assert grid.now == 0 and Roster(1).wait(grid) == [0]


def test_whoever_does_not_come_is_named(grid, caplog):
    known = Roster(5)
    assert sorted(known.wait(grid)) == [0, 1, 2]
    assert grid.now >= roster.INTRODUCTION_SECONDS
    (warning,) = [one.message for one in caplog.records if one.levelname == "WARNING"]
    assert warning.startswith("clients 3, 4 are not here")
    assert known.absent == [3, 4]
    # One that leaves is missed as well.
    known.look([10, 12])
    assert known.absent == [1, 3, 4]


def test_many_numbers_are_cut_short():
    assert numbers({3, 1, 2}) == "1, 2, 3"
    assert numbers(range(30), most=2) == "0, 1 and 28 more"
