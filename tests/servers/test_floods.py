"""A device that asks without end makes the turns of others a little longer, and no more of them."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from hlm.wire import encode_request
from servers import shares
from servers.engine.engine import Engine
from servers.llm import LanguageModelService
from servers.origin import Origin
from servers.schedule import OWN_JOBS, OWN_TOKENS, Schedule
from tests.asking import request_of
from tests.models import VOCAB, random_model
from tests.wire_rows import Row

FLOOD, CONNECTIONS = Origin("flood"), 30
ALONE, TURNS = 4, 14
"""Turns before others ask, in which a flood uses up what it has for asking little; and all."""
FLOODS = {"short": (1, 8), "texts": (64, 4), "long": (16, 60)}
"""Texts of a message and tokens of each."""


@cache
def engine() -> Engine:
    return Engine(random_model("llama", 2), max_sessions=64, max_context=64)


class Crowd:
    """Devices that ask one schedule, turn after turn."""

    def __init__(self, most: int) -> None:
        self.service = LanguageModelService(engine())
        self.schedule = Schedule(self.service, most)
        self.asked = 0

    def ask(self, origin: Origin, texts: int, length: int, client: int):
        """A message that begins texts."""
        self.asked += 1
        tokens = np.random.default_rng(self.asked).integers(1, VOCAB, length)
        rows = [Row(index, 0, tokens, 7) for index in range(texts)]
        message = encode_request(request_of("greedy", rows, client=client, feedback=True))
        return self.schedule.add(self.service.begin(message, origin=origin))

    def flooded(self, jobs: list, flood: str) -> list:
        """What the flood waits for, once it has asked again on each connection."""
        jobs = [job for job in jobs if not job.finished]
        clients = {job.request.client for job in jobs}
        free = [100 + n for n in range(CONNECTIONS) if 100 + n not in clients]
        return jobs + [self.ask(FLOOD, *FLOODS[flood], client) for client in free]

    def turn(self) -> int:
        """Take a turn; how many tokens it read."""
        before = self.service.engine.stats.tokens
        self.schedule.turn()
        return self.service.engine.stats.tokens - before


def waited(flood: str, most: int, devices: int = 6) -> tuple[list[int], list[int]]:
    """Turns that each question of honest devices waited, and tokens of each turn.

    A device asks again in the midst of the turn that follows its answer, and waits for its end.
    """
    crowd, jobs = Crowd(most), []
    asked = {}
    waits, sizes = [], []
    for turn in range(TURNS):
        if flood:
            jobs = crowd.flooded(jobs, flood)
        sizes.append(crowd.turn())
        for device in range(devices):
            if device not in asked and turn >= ALONE + device % 2:
                asked[device] = turn, crowd.ask(Origin(f"device {device}"), 1, 16, device)
            elif device in asked and asked[device][1].finished:
                assert asked[device][1].error is None
                waits.append(turn - asked.pop(device)[0])
    return waits, sizes


@pytest.mark.parametrize("most", [1, 64])
@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_makes_others_turns_little_longer_and_no_more(flood, most):
    usual, _ = waited("", most)
    beside, sizes = waited(flood, most)
    assert max(beside) <= 2 * max(usual)
    assert np.mean(beside) <= (1 if most > 1 else 2) * np.mean(usual)
    honest = 16 * (3 if most > 1 else 1)
    assert max(sizes[ALONE + 1 :]) <= honest + max(honest, OWN_TOKENS)


def test_a_flood_takes_part_in_turns_with_few_requests():
    crowd = Crowd(64)
    jobs = crowd.flooded([], "short")
    honest = [crowd.ask(Origin(f"device {n}"), 1, 16, n) for n in range(2)]
    crowd.turn()
    assert all(job.finished for job in honest)
    assert sum(job.finished for job in jobs) == OWN_JOBS


def test_those_that_ask_as_much_as_each_other_share_whole_turns():
    crowd = Crowd(64)
    for name in ("phone", "car"):
        crowd.ask(Origin(name), 64, 60, 1)
    assert crowd.turn() == 1024


def test_who_has_been_alone_for_long_has_whole_turns_again(monkeypatch):
    monkeypatch.setattr(shares, "LATELY", 32)
    crowd = Crowd(64)
    crowd.ask(Origin("phone"), 1, 16, 1)
    jobs, sizes = [], []
    for _ in range(34):
        jobs = crowd.flooded(jobs, "long")
        sizes.append(crowd.turn())
    # The first has what the flood had not used before.
    assert max(sizes[1:32]) <= 16 + OWN_TOKENS
    assert sizes[33] == 1024


def test_a_long_text_now_and_then_is_read_in_one_turn(monkeypatch):
    monkeypatch.setattr(shares, "LATELY", 32)
    crowd = Crowd(64)
    sizes = []
    for turn in range(91):
        crowd.ask(Origin("car"), 1, 16, 2)
        crowd.ask(Origin("phone"), 1, 4, 3)
        if turn in (20, 21, 90):
            crowd.ask(Origin("phone"), 16, 60, turn)
        sizes.append(crowd.turn())
    assert sizes[20] == sizes[90] == 16 + 4 + 16 * 60
    assert max(sizes[21:90]) <= 16 + 2 * OWN_TOKENS
