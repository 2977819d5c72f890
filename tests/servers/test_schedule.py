"""Long messages are read in slices: what they may hold, and who is served in between."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fedhlm_app.transport.http_transport import HttpTransport
from hlm.wire import Limits, Status, decode_reply, encode_request
from servers import schedule, verdicts
from servers.engine.engine import Engine
from servers.llm import LanguageModelService
from servers.origin import Origin
from servers.shares import fair_shares
from tests.asking import IDENTITY, answers, request_of
from tests.models import VOCAB, random_model
from tests.served import StuckService, make_service, payload, serving
from tests.wire_rows import Row, told


def texts(count, length, client=0, verifier="greedy", **options):
    """A request that begins `count` texts."""
    random = np.random.default_rng(client)
    weight = 128 if verifier == "scalar" else None
    rows = [Row(i, 0, random.integers(1, VOCAB, length), 7, weight) for i in range(count)]
    return request_of(verifier, rows, client=client, feedback=True, **options)


def roomy(sessions=64):
    """A service that reads what `LIMITS` of the tests would refuse."""
    engine = Engine(random_model("llama", 2), max_sessions=sessions, max_context=64)
    return LanguageModelService(engine)


def watched(service):
    """What each pass of a service's engine read and yielded: (clients, tokens, positions)."""
    passes, score = [], service.engine.score

    def watching(feeds):
        before = service.engine.stats.tokens
        found = score(feeds)
        tokens = service.engine.stats.tokens - before
        if tokens:
            rows = sum(len(logits) for logits in found if logits is not None)
            passes.append(([feed.session[0] for feed in feeds], tokens, rows))
        return found

    service.engine.score = watching
    return passes


@pytest.fixture
def small_slices(monkeypatch):
    monkeypatch.setattr(schedule, "SLICE_TOKENS", 16)


@pytest.mark.parametrize("most", [1, 8])
def test_who_asks_under_many_numbers_gets_the_turns_of_one(most):
    service = make_service()
    turns = schedule.Schedule(service, most)

    def ask(origin, client):
        return turns.add(service.begin(payload(client=client), origin=Origin(address=origin)))

    for client in range(40):
        ask("flood", client)
    served = []
    for number in range(5):
        honest = ask("honest", 50)
        while not honest.finished:
            # Who floods has more to ask each time.
            ask("flood", 100 + len(served))
            served += [job.origin.address for job in turns.turn()]
        assert served.count("honest") == number + 1
    assert served.count("flood") <= 5 * (2 * most - 1)


@pytest.mark.parametrize("count", [3, 30, 300])
def test_what_a_pass_reads_and_yields_does_not_grow_with_the_message(count, monkeypatch):
    monkeypatch.setattr(schedule, "SLICE_TOKENS", 100)
    monkeypatch.setattr(schedule, "LOGIT_VALUES", 20 * VOCAB)
    reduced = []
    opinions = verdicts.feedback_bytes
    monkeypatch.setattr(verdicts, "REDUCED_VALUES", 8 * VOCAB)
    monkeypatch.setattr(
        verdicts, "feedback_bytes", lambda y, c: reduced.append(len(y)) or opinions(y, c)
    )
    service = roomy()
    passes = watched(service)
    (reply,) = answers(service, [texts(count, 60)])
    assert all(row.status == Status.OK and len(row.feedback) == 60 for row in told(reply))
    assert max(tokens for _, tokens, _ in passes) <= 100
    assert max(rows for _, _, rows in passes) == 20
    assert max(reduced) == 8


def test_the_defaults_bound_a_message_of_many_texts():
    """1,000 texts of 60 tokens want logits at 60,000 places: 1 GB of a vocabulary of 4,096."""
    message = texts(1000, 60)
    service = roomy()
    passes = watched(service)
    answers(service, [message])
    most = schedule.LOGIT_VALUES // VOCAB
    assert max(tokens for _, tokens, _ in passes) <= schedule.SLICE_TOKENS
    assert max(rows for _, _, rows in passes) <= min(most, schedule.SLICE_TOKENS)
    assert len(passes) >= 1000 * 60 // schedule.SLICE_TOKENS


@pytest.mark.parametrize(
    ("verifier", "options"),
    [
        ("greedy", {}),
        ("coupled", {"decoding": "sampled", "seed": 3}),
        ("scalar", {"decoding": "sampled", "seed": 3}),
    ],
)
def test_slices_give_the_answers_of_one_pass(verifier, options, monkeypatch):
    message = texts(5, 50, verifier=verifier, **options)
    (whole,) = answers(roomy(), [message])
    for tokens, values in ((7, 1 << 20), (1 << 20, 3 * VOCAB), (1, VOCAB)):
        monkeypatch.setattr(schedule, "SLICE_TOKENS", tokens)
        monkeypatch.setattr(schedule, "LOGIT_VALUES", values)
        (sliced,) = answers(roomy(), [message])
        for one, other in zip(told(whole), told(sliced), strict=True):
            assert (one.status, one.accepted, one.token) == (
                other.status,
                other.accepted,
                other.token,
            )
            # An opinion is rounded to an eighth of a nat; sums of other shapes may tip it.
            pair = np.stack([one.feedback, other.feedback]).astype(int)
            assert (pair[0] >> 7 == pair[1] >> 7).all()
            assert np.abs((pair[0] & 127) - (pair[1] & 127)).max() <= 1


def test_a_message_that_goes_on_from_a_held_text_is_sliced_too(small_slices):
    service = roomy()
    first = Row(0, 0, np.arange(1, 9), 7, quiet=8)
    more = Row(0, 8, np.arange(9, 50), 7, quiet=41)
    answers(service, [request_of("greedy", [first], feedback=True)])
    passes = watched(service)
    (reply,) = answers(
        service, [request_of("greedy", [more], on={0: np.arange(1, 9)}, feedback=True)]
    )
    (whole,) = answers(
        roomy(), [request_of("greedy", [Row(0, 0, np.arange(1, 50), 7, quiet=49)], feedback=True)]
    )
    assert told(reply)[0].token == told(whole)[0].token
    assert [tokens for _, tokens, _ in passes] == [16, 16, 9]
    # Quiet tokens: only the draft's place has logits, and one place a slice to get there.
    assert [rows for _, _, rows in passes] == [1, 1, 1]


def test_a_text_that_is_too_long_is_refused_before_it_is_read():
    service = roomy()
    passes = watched(service)
    (reply,) = answers(service, [texts(1, 65)])
    assert told(reply)[0].status == Status.REFUSED
    assert passes == []


def test_a_text_whose_place_is_taken_between_slices_is_asked_for_again(small_slices):
    service = roomy(sessions=1)
    long, short = texts(1, 40), texts(1, 3, client=1)
    one, other = answers(service, [long, short])
    statuses = {told(one)[0].status, told(other)[0].status}
    assert Status.PREFIX_NEEDED in statuses
    assert told(one)[0].token == -1 or told(other)[0].token == -1


@pytest.mark.parametrize("most", [1, 64])
def test_a_short_question_is_answered_between_the_slices_of_a_long_one(most, small_slices):
    service = StuckService()
    long = encode_request(texts(1, 60))
    with serving(service, most=most) as (port, _), ThreadPoolExecutor(3) as pool:
        link = HttpTransport(f"127.0.0.1:{port}", timeout=120)
        reading = pool.submit(link.exchange, long)
        assert service.reached.wait(120)
        others = [pool.submit(link.exchange, payload(client=client)) for client in (1, 2)]
        wait_until(lambda: served_waiting(port) == 3)
        service.go.set()
        answers = [reading.result(120), *(other.result(120) for other in others)]
        link.close()
    order = [client for clients in service.passes for client in clients]
    # The first slice was under way; then each has its turn.
    assert {1, 2} <= set(order[:4]) and order[-1] == 0
    assert order.count(0) >= 4
    alone = make_service()
    assert answers[1:] == [alone.handle(payload(client=client)) for client in (1, 2)]
    assert told(decode_reply(answers[0], texts(1, 60)))[0].status == Status.OK


def served_waiting(port):
    import json
    from http.client import HTTPConnection

    connection = HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("GET", "/v1/stats")
    found = json.loads(connection.getresponse().read())["waiting"]
    connection.close()
    return found


def wait_until(what):
    deadline = time.monotonic() + 120
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def hung_up(port, body):
    """A caller that sends a whole request; close it to hang up."""
    caller = socket.create_connection(("127.0.0.1", port), timeout=120)
    head = f"POST /v1/exchange HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    caller.sendall(head.encode() + body)
    return caller


@pytest.mark.parametrize("most", [1, 64])
def test_what_abandoned_callers_asked_costs_nobody_a_pass(most):
    service = StuckService()
    with serving(service, most=most) as (port, served), ThreadPoolExecutor(2) as pool:
        link = HttpTransport(f"127.0.0.1:{port}", timeout=120)
        first = pool.submit(link.exchange, payload(client=0))
        assert service.reached.wait(120)
        callers = [hung_up(port, payload(client=client)) for client in range(1, 11)]
        wait_until(lambda: served.waiting.taken == 11)
        honest = pool.submit(link.exchange, payload(client=99))
        wait_until(lambda: served.waiting.taken == 12)
        for caller in callers:
            caller.close()
        wait_until(lambda: served.waiting.taken == 2)
        service.go.set()
        assert first.result(120) and honest.result(120)
        wait_until(lambda: served.counts["499"] == 10)
        link.close()
    assert service.passes == [[0], [99]]


def test_a_long_request_whose_caller_hangs_up_is_read_no_further(small_slices):
    service = StuckService()
    with serving(service) as (port, served):
        caller = hung_up(port, encode_request(texts(4, 60)))
        assert service.reached.wait(120)
        caller.close()
        wait_until(lambda: served.waiting.taken == 0)
        service.go.set()
        link = HttpTransport(f"127.0.0.1:{port}", timeout=120)
        link.exchange(payload(client=5))
        link.close()
        wait_until(lambda: served.batcher.abandoned == 1)
    assert service.passes == [[0], [5]]


def test_after_its_limit_a_request_is_given_up_and_done_no_more(small_slices):
    service = StuckService()
    with serving(service, answer_seconds=0.2) as (port, served):
        caller = hung_up(port, encode_request(texts(4, 60)))
        assert caller.recv(64).startswith(b"HTTP/1.1 503")
        assert served.waiting.taken == 0
        service.go.set()
        wait_until(lambda: len(service.passes) == 1)
        caller.close()
    assert service.passes == [[0]]


@pytest.mark.parametrize(
    ("needs", "total", "shares"),
    [
        ([5], 3, [3]),
        ([1, 1], 2, [1, 1]),
        ([100, 2, 100], 20, [9, 2, 9]),
        ([100, 2, 3], 1000, [100, 2, 3]),
        ([7, 7, 7], 4, [1, 1, 2]),
        ([], 5, []),
    ],
)
def test_fair_shares(needs, total, shares):
    assert sorted(fair_shares(needs, total)) == sorted(shares)
    assert sum(fair_shares(needs, total)) <= total


def test_limits_of_a_message_are_checked_before_anything_is_allocated():
    limits = Limits(max_tokens=100)
    service = LanguageModelService(make_service().engine, limits)
    with pytest.raises(ValueError, match="tokens"):
        service.handle(encode_request(texts(3, 60)))


def test_a_request_within_the_bounds_is_one_pass_whatever_the_engine_has_not_read_yet():
    service = roomy()
    begun = Row(0, 0, np.arange(1, 9), 7)
    (reply,) = answers(service, [request_of("greedy", [begun], feedback=True)])
    # The decided token is held and was not read.
    key = (0, 0, IDENTITY)
    assert service.engine.held(key) == 9 > service.engine.computed(key)
    passes = watched(service)
    text = [*range(1, 9), told(reply)[0].token]
    further = Row(0, 9, np.array([5]), 7)
    answers(service, [request_of("greedy", [further], on={0: text}, feedback=True)])
    flush = Row(1, 0, np.arange(1, 30))
    answers(service, [request_of("greedy", [flush])])
    further = Row(1, 29, np.array([5]), 7)
    answers(service, [request_of("greedy", [further], on={1: range(1, 30)})])
    assert len(passes) == 2
    assert told(reply)[0].status == Status.OK
