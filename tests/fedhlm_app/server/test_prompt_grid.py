"""Replies are taken soon after they have come."""

from __future__ import annotations

import threading
from itertools import pairwise
from types import SimpleNamespace

import pytest
from flwr.supercore.inflatable import inflatable_utils
from flwr.superlink.grid import HttpGrid, http_grid

from fedhlm_app.server import prompt_grid
from fedhlm_app.server.prompt_grid import PromptGrid


class Grid:
    """Replies to message `n` after `seconds[n]`."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds, self.looks, self.pushed = clock, seconds, 0, []

    def get_node_ids(self):
        return [4]

    def push_messages(self, messages):
        before = sum(number for _, number in self.pushed)
        self.pushed.append((self.clock[0], len(messages)))
        return [str(before + number) for number, _ in enumerate(messages)]

    def pull_messages(self, ids):
        self.looks += 1
        return [
            SimpleNamespace(metadata=SimpleNamespace(reply_to_message_id=one))
            for one in sorted(ids)
            if self.seconds[int(one)] <= self.clock[0]
        ]


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]

    def sleep(seconds):
        now[0] += seconds

    ours = SimpleNamespace(monotonic=lambda: now[0], sleep=sleep)
    monkeypatch.setattr(prompt_grid, "time", ours)
    return now


@pytest.mark.parametrize(("last", "waited"), [(0.05, 0.1), (0.95, 1.2), (10, 11.2), (300, 303)])
def test_the_wait_is_a_small_share_of_the_work(clock, last, waited):
    grid = Grid(clock, [0.0, last])
    replies = PromptGrid(grid).send_and_receive(["a", "b"], timeout=1000)
    assert [one.metadata.reply_to_message_id for one in replies] == ["0", "1"]
    assert last <= clock[0] <= waited
    assert grid.looks < 150


def test_after_its_time_it_returns_what_has_come(clock):
    replies = PromptGrid(Grid(clock, [1.0, 100.0])).send_and_receive(["a", "b"], timeout=5)
    assert [one.metadata.reply_to_message_id for one in replies] == ["0"]
    assert 5 <= clock[0] <= 5.7


def test_many_messages_leave_others_time_to_write(clock):
    grid = Grid(clock, [0.0] * 25)
    assert len(PromptGrid(grid).send_and_receive([str(n) for n in range(25)])) == 25
    assert [number for _, number in grid.pushed] == [10, 10, 5]
    begun = [when for when, _ in grid.pushed]
    # SQLite asks for a free moment every .1 s.
    assert all(later - earlier > 0.1 for earlier, later in pairwise(begun))


def test_a_part_of_a_reply_that_is_under_way_is_asked_for_again_soon(clock, monkeypatch):
    waits, times = [], []

    class Event(threading.Event):
        def wait(self, timeout=None):
            waits.append(timeout)
            return super().wait(0)

    monkeypatch.setattr(http_grid, "pull_objects", inflatable_utils.pull_objects)
    assert "pull_objects" in HttpGrid.pull_messages.__code__.co_names
    # In this module alone.
    names = {**vars(threading), "Event": Event}
    monkeypatch.setattr(inflatable_utils, "threading", SimpleNamespace(**names))

    def pull(name):
        times.append(name)
        if len(times) < 4:
            raise inflatable_utils.ObjectUnavailableError(name)
        return b"part"

    PromptGrid(Grid(clock, []))
    assert http_grid.pull_objects(["a"], pull) == {"a": b"part"}
    assert sum(waits) < 0.5 and waits == sorted(waits)


def test_nodes_are_the_grids(clock):
    assert PromptGrid(Grid(clock, [])).get_node_ids() == [4]
