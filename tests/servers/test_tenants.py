"""All devices of a tenant have the turns and quotas of one, however many they are."""

from __future__ import annotations

from collections import Counter

import pytest

from fedhlm_app.cli import keys
from hlm.wire import Status
from servers.access import DeviceTokens
from servers.origin import Full, Origin, Shared
from servers.schedule import Schedule
from tests.servers.test_floods import Crowd
from tests.servers.test_quotas import (
    CAR,
    SESSIONS,
    answered,
    beginning,
    goes_on,
    make_service,
    opened,
)

MANY = [Origin(f"acme/phone-{number}") for number in range(20)]
FEW = [Origin("globex/car"), Origin("globex/van")]


def tenant_of(job) -> str:
    return job.origin.device.partition("/")[0]


def test_requests_of_tenants_have_turns_alike():
    crowd = Crowd(8)
    jobs = [crowd.ask(origin, 1, 16, 1) for origin in MANY]
    jobs += [crowd.ask(origin, 1, 16, client) for origin in FEW for client in range(10)]
    for turn in range(1, 5):
        crowd.turn()
        done = Counter(tenant_of(job) for job in jobs if job.finished)
        assert done == {"acme": 4 * turn, "globex": 4 * turn}


def test_tokens_of_tenants_are_shared_alike():
    crowd = Crowd(64)
    few = [crowd.ask(origin, 16, 60, 1) for origin in FEW]  # 960 tokens each
    for origin in MANY:
        crowd.ask(origin, 16, 60, 1)
    turns = 0
    while not all(job.finished for job in few):
        assert crowd.turn() <= 1024
        turns += 1
    # A half of 1,024 tokens a turn; of 22 devices that share alike they would have a tenth.
    assert turns == 4


def test_within_a_tenant_a_flood_is_one_device():
    crowd = Crowd(64)
    flood = [crowd.ask(MANY[0], 1, 8, client) for client in range(40)]
    honest = [crowd.ask(origin, 1, 16, 1) for origin in MANY[1:3]]
    crowd.turn()
    assert all(job.finished for job in honest)
    assert sum(job.finished for job in flood) < len(flood)


def test_a_tenant_has_half_of_what_there_is():
    queue = Shared(12)
    for origin in MANY[:6]:
        queue.take(origin, 1)
    with pytest.raises(Full) as full:
        queue.take(MANY[6], 1)
    assert full.value.share
    for origin in (*FEW, Origin("alone")):
        queue.take(origin, 2)
    with pytest.raises(Full) as full:
        queue.take(CAR, 1)
    assert not full.value.share
    queue.take(MANY[0], -1)
    queue.take(CAR, 1)


def test_devices_of_a_tenant_lose_its_texts_and_not_anothers():
    service = make_service()
    schedule = Schedule(service)
    answered(service, schedule, (beginning(1, [0, 1, 2]), FEW[0]))
    for number, origin in enumerate(MANY):
        answered(service, schedule, (beginning(100 + number, [number]), origin))
    kept = [goes_on(service, schedule, number, FEW[0]) for number in (0, 1, 2)]
    assert kept == [Status.OK] * 3
    assert service.engine.stats.evictions == 3 + len(MANY) - SESSIONS


def test_streams_of_a_tenant_have_half_of_the_room():
    service = make_service()
    schedule = Schedule(service)
    streams = [opened(service, schedule, 1, FEW[0])]
    schedule.turn()
    streams += [opened(service, schedule, 100 + n, MANY[n]) for n in range(4)]
    for _ in range(4):
        schedule.turn()
    few, *many = [len(stream.rows) for stream in streams]
    assert few == 3 and 0 < sum(many) <= SESSIONS // 2


def test_a_device_is_issued_under_its_tenant(tmp_path, capsys):
    keys.create(tmp_path, None)
    keys.issue("acme/phone", tmp_path)
    keys.issue("acme", tmp_path)
    assert (tmp_path / "devices" / "acme" / "phone" / "token").stat().st_mode & 0o777 == 0o600
    keys.list_keys(tmp_path)
    assert "acme/phone" in capsys.readouterr().out
    keys.revoke("acme/phone", tmp_path)
    assert list(DeviceTokens(tmp_path / keys.DEVICES).digests) == ["acme"]


@pytest.mark.parametrize("name", ["/phone", "acme/", "acme//phone", "a/b/c", "../phone", "a/../b"])
def test_a_name_that_is_none_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match="allowed are"):
        DeviceTokens(tmp_path / "devices.json").issue(name)
