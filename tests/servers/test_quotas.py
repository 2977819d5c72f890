"""No device takes the places of others' texts and streams, however much it asks for."""

from __future__ import annotations

import numpy as np
import pytest

from hlm.wire import Status, decode_reply, encode_request
from hlm.wire.stream import Opening, encode_opening
from servers.engine.engine import Engine
from servers.llm import LanguageModelService
from servers.origin import NOBODY, Origin
from servers.schedule import Schedule
from tests.asking import request_of
from tests.models import random_model
from tests.wire_rows import Row, told

PHONE, CAR = Origin("phone"), Origin("car")
SESSIONS = 8


def make_service() -> LanguageModelService:
    engine = Engine(random_model("llama", 2), max_sessions=SESSIONS, max_context=64)
    return LanguageModelService(engine)


def beginning(client: int, numbers) -> bytes:
    rows = [Row(number, 0, np.array([5, 9, 1 + number % 50]), 7) for number in numbers]
    return encode_request(request_of("greedy", rows, client=client))


def answered(service, schedule: Schedule, *asked: tuple[bytes, Origin]) -> list[bytes]:
    """What is answered to requests that wait at the same time."""
    jobs = [schedule.add(service.begin(payload, origin=origin)) for payload, origin in asked]
    while schedule.busy:
        schedule.turn()
    return [service.written(job) for job in jobs]


def goes_on(service, schedule: Schedule, number: int, origin: Origin) -> Status:
    """Whether a text that `beginning` began for client 1 is still held."""
    row = Row(number, 2, np.array([1 + number % 50]), 7)
    request = request_of("greedy", [row], client=1, on={number: [5, 9]})
    (reply,) = answered(service, schedule, (encode_request(request), origin))
    return told(decode_reply(reply, request))[0].status


@pytest.mark.parametrize("most", [1, 64])
@pytest.mark.parametrize("texts", [1, 20])
def test_who_begins_text_after_text_loses_its_own(texts, most):
    service = make_service()
    schedule = Schedule(service, most)
    answered(service, schedule, (beginning(1, [0, 1, 2]), CAR))
    for first in range(0, 80, 4 * texts):
        numbers = range(first, first + 4 * texts)
        asked = [beginning(100 + i, numbers[i::4]) for i in range(4)]
        answered(service, schedule, *((payload, PHONE) for payload in asked))
    assert [goes_on(service, schedule, number, CAR) for number in (0, 1, 2)] == [Status.OK] * 3
    assert service.engine.stats.evictions > 70


def test_alone_it_has_all_places_and_beside_others_the_oldest_of_all_go_first():
    service = make_service()
    schedule = Schedule(service)
    answered(service, schedule, (beginning(1, range(SESSIONS)), PHONE))
    assert service.engine.stats.evictions == 0
    # Who has less than half takes the place of whichever was not used for longest.
    answered(service, schedule, (beginning(2, [50]), CAR), (beginning(3, [60]), NOBODY))
    found = [goes_on(service, schedule, number, PHONE) for number in range(SESSIONS)]
    assert found == [Status.PREFIX_NEEDED] * 2 + [Status.OK] * 6


def opened(service, schedule: Schedule, client: int, origin: Origin, credit: int = 1):
    rows = [Row(number, 0, np.array([5, 9, 2]), 7) for number in range(3)]
    request = request_of("greedy", rows, client=client)
    payload = encode_opening(Opening(request, client, 40, credit))
    return schedule.add(service.open(payload, origin=origin))


def test_streams_under_many_client_numbers_have_half_of_the_room():
    service = make_service()
    schedule = Schedule(service)
    streams = [opened(service, schedule, 1, CAR)]
    schedule.turn()
    streams += [opened(service, schedule, client, PHONE) for client in range(100, 104)]
    for _ in range(4):
        schedule.turn()
    car, *phone = [len(stream.rows) for stream in streams]
    assert car == 3 and 0 < sum(phone) <= SESSIONS // 2


@pytest.mark.parametrize("origin", [CAR, PHONE])
def test_rows_that_lose_their_place_within_a_turn_end_and_the_turn_does_not(origin):
    service = make_service()
    schedule = Schedule(service)
    stream = opened(service, schedule, 1, origin, credit=40)
    while not stream.writing:
        schedule.turn()
    answers = answered_beside(service, schedule, stream, beginning(2, range(30)))
    assert (answers == Status.OK).all() and len(answers) == 30
    assert bool(stream.rows) == (origin == CAR) == (service.streams.stats.tokens > 0)


def answered_beside(service, schedule: Schedule, stream, payload: bytes):
    """The statuses of a request of the phone, read in turns that a stream has as well."""
    job = schedule.add(service.begin(payload, origin=PHONE))
    while not job.finished:
        schedule.turn()
    return job.reply.statuses
