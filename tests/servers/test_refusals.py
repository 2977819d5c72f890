"""Refusals beyond some a second wait, over all connections of who is refused; others never do."""

from __future__ import annotations

import asyncio
from functools import partial
from types import SimpleNamespace

import httpx
import pytest

from servers import refusals
from servers.access import DeviceTokens, Tokens
from servers.edge.service import ServedEdge
from servers.origin import Origin
from servers.refusals import AT_ONCE_SECONDS, EACH_SECOND, LONGEST_SECONDS, Refusals
from servers.service import ServedLanguageModel, ServiceOptions
from tests.served import make_service, payload
from tests.servers.edge.test_service import BEGIN, build

PHONE, CAR = Origin("phone"), Origin(address="10.0.0.5")
AT_ONCE = int(EACH_SECOND * AT_ONCE_SECONDS)


@pytest.fixture
def clock():
    return [100.0]


def heard(found: Refusals, clock: list[float], origin: Origin, until: float, connections: int):
    """Refusals that an origin hears until then, which asks again whenever it has heard one."""
    free, count = [clock[0]] * connections, 0
    while (begun := min(free)) < until:
        clock[0] = begun
        # A connection whose refusal does not wait asks a thousand times a second.
        free[free.index(begun)] = begun + max(found.wait(origin), 0.001)
        count += 1
    return count


@pytest.mark.parametrize("connections", [1, 32, 256])
def test_some_a_second_are_heard_over_however_many_connections(clock, connections):
    count = heard(Refusals(lambda: clock[0]), clock, PHONE, clock[0] + 20, connections)
    assert count == pytest.approx(20 * EACH_SECOND + AT_ONCE, abs=connections + 2)


def test_the_first_and_those_of_others_do_not_wait(clock):
    found = Refusals(lambda: clock[0])
    assert [found.wait(PHONE) for _ in range(AT_ONCE)] == [0.0] * AT_ONCE
    waits = [found.wait(PHONE) for _ in range(10 * AT_ONCE)]
    assert 0 < waits[0] == pytest.approx(1 / EACH_SECOND)
    assert waits == sorted(waits) and waits[-1] == LONGEST_SECONDS
    assert found.wait(CAR) == 0
    clock[0] += AT_ONCE_SECONDS + LONGEST_SECONDS
    assert found.wait(PHONE) == 0


def test_devices_of_a_tenant_hear_as_many_as_one(clock):
    found = Refusals(lambda: clock[0])
    waits = [found.wait(Origin(f"shop/{number}")) for number in range(2 * AT_ONCE)]
    assert waits[AT_ONCE - 1] == 0 < waits[AT_ONCE] and found.wait(Origin("bank/1")) == 0


def test_who_is_no_longer_refused_is_forgotten(clock):
    found = Refusals(lambda: clock[0])
    for number in range(20_000):
        clock[0] += 0.001
        found.wait(Origin(address=str(number)))
    assert len(found) <= 4
    for _ in range(3 * AT_ONCE):
        found.wait(PHONE)
    clock[0] += AT_ONCE_SECONDS + LONGEST_SECONDS
    found.wait(CAR)
    assert len(found) == 1


@pytest.fixture
def slept(monkeypatch):
    """What refusals were to wait, at a clock that stands still."""
    found: list[float] = []

    async def sleep(seconds):
        found.append(seconds)

    monkeypatch.setattr(refusals, "asyncio", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(refusals.Refusals.__init__, "__defaults__", (lambda: 100.0,))
    monkeypatch.setattr(refusals, "EACH_SECOND", 4)
    return found


async def asked(app, path, *asking):
    """What is answered to each token and body, one after another, from one address."""
    way = httpx.ASGITransport(app, client=("10.0.0.5", 1))
    async with httpx.AsyncClient(transport=way, base_url="http://a") as client:
        return [
            (await client.post(path, content=body, headers=head)).status_code
            for head, body in asking
        ]


def test_a_server_lets_what_it_refuses_wait_and_nothing_else(slept, tmp_path):
    known = DeviceTokens(tmp_path / "devices.json")
    phone, car = ({"authorization": f"Bearer {known.issue(name)}"} for name in ("phone", "car"))
    stranger = {"authorization": "Bearer wrong"}

    async def all_asked():
        tokens = Tokens(file=known.file)
        app = ServedLanguageModel(make_service(), ServiceOptions(), tokens=tokens).app
        ask = partial(asked, app, "/v1/exchange")
        assert await ask(*[(phone, b"x")] * 6) == [400] * 6
        assert slept == pytest.approx([0.25, 0.5])
        # Its own good messages do not wait, nor do others from its address.
        good = (phone, payload()), (car, payload(client=2))
        assert await ask(*good, (car, b"x"), (stranger, b"x")) == [200, 200, 400, 401]
        assert len(slept) == 2
        assert await ask(*[(stranger, b"x")] * 6) == [401] * 6
        assert slept[2:] == pytest.approx([0.25, 0.5, 0.75])

    asyncio.run(all_asked())


def test_an_edge_server_does_too(slept):
    served = ServedEdge(build)
    served.runs["1"] = build("1", BEGIN)
    found = asyncio.run(asked(served.app, "/edge/1/v1/exchange", *[({}, b"x")] * 6))
    assert found == [400] * 6
    assert slept == pytest.approx([0.25, 0.5])
