"""Texts never mix without a word: of two devices, two runs, two replicas, or a stranger."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle

import numpy as np
import pytest

from clients.policy import RandomPolicy, ThresholdPolicy
from fedhlm_app.models.load import load_llm
from fedhlm_app.serve_device.texts import ServedTexts
from fedhlm_app.settings import Settings
from fedhlm_app.transport.http_transport import HttpTransport
from fedhlm_app.transport.transports import DirectTransport
from hlm.wire import Status, decode_reply, encode_request
from servers.engine.engine import Engine
from servers.llm import LanguageModelService
from tests.asking import IDENTITY, request_of
from tests.fedhlm_app.serve_device.devices import written
from tests.models import VOCAB, random_model
from tests.routed import GREEDY, SAMPLED, build, make_prompts, new_part
from tests.served import serving
from tests.wire_rows import Row, RowReply, told

SLM, LLM = random_model("llama", 1), random_model("llama", 2)
STEPS, DEVICES = 10, 12
PROMPTS = make_prompts(VOCAB, 4, seed=3)
OTHER = make_prompts(VOCAB, 4, seed=4)
STRANGER = bytes(16)


def make_service(sessions: int = 64) -> LanguageModelService:
    return LanguageModelService(Engine(LLM, max_sessions=sessions, max_context=64))


def device(transport, sampling=GREEDY):
    """A device process; all have client number 0, and number their texts alike."""
    setup = build(SLM, LLM, RandomPolicy(0.5), sampling)
    setup.uplink.link.transport = transport
    return setup


def texts_alone(prompts, sampling=GREEDY):
    texts, _, traffic = build(SLM, LLM, RandomPolicy(0.5), sampling).generate(prompts, STEPS)
    return [new_part(texts, row) for row in range(len(prompts))], traffic


class Direct:
    def __init__(self, service):
        self.exchange = service.handle


class Turns:
    """Lets another device ask between any two of one device's messages."""

    def __init__(self, service, between):
        self.service, self.between = service, between

    def exchange(self, payload):
        answer = self.service.handle(payload)
        self.between()
        return answer


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_devices_of_one_number_get_their_own_texts(sampling):
    service = make_service()
    other = device(Direct(service), sampling)
    made = []

    def between():
        texts, _, _ = other.generate(OTHER, 2)
        made.append(texts)

    texts, _, traffic = device(Turns(service, between), sampling).generate(PROMPTS, STEPS)
    expected, alone = texts_alone(PROMPTS, sampling)
    assert [new_part(texts, row) for row in range(4)] == expected
    # It costs nothing either: no prefix is asked for.
    assert (traffic.uplink, traffic.downlink) == (alone.uplink, alone.downlink)
    assert len(made) > 5


def test_two_runs_at_once_end_as_each_alone():
    service = make_service()
    found = [[], []]

    def run(which, prompts):
        for _ in range(DEVICES):
            texts, _, _ = device(Direct(service), SAMPLED).generate(prompts, STEPS)
            found[which].append([new_part(texts, row) for row in range(4)])

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate((PROMPTS, OTHER))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for made, prompts in zip(found, (PROMPTS, OTHER), strict=True):
        assert made == [texts_alone(prompts, SAMPLED)[0]] * DEVICES


def ask(service, *rows, identity=IDENTITY, on=None):
    request = request_of("greedy", rows, identity=identity, on=on, feedback=True)
    return tuple(told(decode_reply(service.handle(encode_request(request)), request)))


NEEDED = RowReply(Status.PREFIX_NEEDED)
NOTHING = np.zeros(0, np.int64)


def test_a_stranger_learns_nothing_of_a_text():
    service = make_service()
    text = [5, 9, 2, 11, 30]
    ask(service, Row(0, 0, np.array(text), 7))
    heard = []
    for start in range(1, 9):
        for session in (0, 99):
            row = Row(session, start, np.array([3]), 7)
            heard += ask(service, row, identity=STRANGER, on={session: [5] * 8})
            # Even who knows the text, but not the identity, hears nothing.
            heard += ask(service, row, identity=STRANGER, on={session: [*text, 1, 1, 1]})
            heard += ask(service, row)
    assert heard == [NEEDED] * 48
    # Nor does beginning one of the same name touch it.
    ask(service, Row(0, 0, np.array([8]), 7), identity=STRANGER)
    (reply,) = ask(service, Row(0, 5, NOTHING, 7), on={0: text})
    (alone,) = ask(make_service(), Row(0, 0, np.array(text), 7))
    assert (reply.status, reply.token) == (Status.OK, alone.token)


def test_another_text_under_the_same_number_is_never_gone_on():
    """As after a replica has missed messages: it holds an older text of the same device."""
    service = make_service()
    ask(service, Row(0, 0, np.array([5, 9, 2, 11]), 7))
    assert ask(service, Row(0, 4, np.array([3]), 7), on={0: [5, 9, 2, 12]}) == (NEEDED,)
    again = Row(0, 0, np.array([5, 9, 2, 12, 3]), 7)
    assert ask(service, again)[0].token == ask(make_service(), again)[0].token


def test_every_token_before_a_row_counts():
    service = make_service()
    text = np.array([5, 9, 2, 11, 30])
    row = Row(0, 5, NOTHING, 7)
    for place in range(5):
        ask(service, Row(0, 0, text, 7))
        wrong = text.copy()
        wrong[place] += 1
        assert ask(service, row, on={0: wrong}) == (NEEDED,)
        assert ask(service, row, on={0: text})[0].status == Status.OK


def test_a_message_goes_on_all_its_texts_or_on_none():
    service = make_service()
    texts = {0: [5, 9, 2], 1: [8, 4], 2: [7, 7, 7]}
    begun = [Row(session, 0, np.array(text), 7) for session, text in texts.items()]
    ask(service, *begun[:2])
    rows = [Row(session, len(text), NOTHING, 7) for session, text in texts.items()]
    assert ask(service, *rows, on=texts) == (NEEDED,) * 3  # there is no text 2
    both = ask(service, *rows[:2], on=texts)
    assert [reply.status for reply in both] == [Status.OK] * 2
    # Those that begin in the same message are served whatever became of the others.
    mixed = ask(service, rows[0], begun[2], on={0: [5, 9, 3]})
    assert [reply.status for reply in mixed] == [Status.PREFIX_NEEDED, Status.OK]
    mixed = ask(service, rows[0], begun[2], on=texts)
    assert [reply.status for reply in mixed] == [Status.OK] * 2
    # Nor may one device's texts be gone on together with another's.
    ask(service, begun[2], identity=STRANGER)
    service.engine.forget((0, 2, IDENTITY))
    assert ask(service, *rows[1:], on=texts) == (NEEDED,) * 2


def test_names_of_dropped_texts_are_forgotten():
    service = make_service(sessions=4)
    for number in range(200):
        ask(service, Row(number, 0, np.array([5, 9]), 7), identity=number.to_bytes(16))
    assert service.texts._count <= 2 * 4 + 1
    assert sum(map(len, service.texts._texts.values())) == service.texts._count


def test_texts_that_begin_together_are_all_known_while_names_are_dropped():
    service = make_service(sessions=6)
    text = [5, 9]
    for first in range(0, 90, 3):
        numbers = range(first, first + 3)
        ask(service, *(Row(number, 0, np.array(text), 7) for number in numbers))
        rows = (Row(number, 2, NOTHING, 7) for number in numbers)
        replies = ask(service, *rows, on=dict.fromkeys(numbers, text))
        assert [reply.status for reply in replies] == [Status.OK] * 3


@contextmanager
def round_robin(ports):
    """A proxy that hands each request to the next server, whoever asks."""
    turn = cycle(ports)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            connection = HTTPConnection("127.0.0.1", next(turn), timeout=120)
            connection.request("POST", self.path, body)
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            self.send_response(answer.status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_replicas_behind_a_plain_proxy_cost_prefixes_alone():
    with (
        serving(make_service()) as (first, _),
        serving(make_service()) as (second, _),
        round_robin([first, second]) as port,
    ):
        link = HttpTransport(f"127.0.0.1:{port}", timeout=120)
        # Both replicas hold texts of an earlier run, longer ones of the same numbers.
        device(link).generate(OTHER, 2 * STEPS)
        texts, records, traffic = device(link).generate(PROMPTS, STEPS)
        # One text a message: each begins at one replica and goes on at the other.
        single = device(link)
        one_by_one = [
            new_part(single.generate([prompt], STEPS, np.array([row]))[0], 0)
            for row, prompt in enumerate(PROMPTS)
        ]
        link.close()
    expected, alone = texts_alone(PROMPTS)
    assert [new_part(texts, row) for row in range(4)] == expected == one_by_one
    assert records.stage_counts()["unresolved"] == traffic.failures == 0
    assert traffic.uplink > alone.uplink


def test_the_identity_is_random_and_influences_nothing_else():
    identities, bytes_up, made = set(), set(), []
    for _ in range(3):
        setup = device(Direct(make_service()), SAMPLED)
        texts, _, traffic = setup.generate(PROMPTS, STEPS)
        identities.add(setup.uplink.config.identity)
        bytes_up.add(traffic.uplink)
        made.append(texts.tokens.tolist())
    assert len(identities) == 3
    assert len(bytes_up) == 1
    assert made[0] == made[1] == made[2]


def test_the_identity_is_sent_when_texts_begin_and_digests_later():
    sent = []

    class Watched:
        def exchange(self, payload):
            sent.append(payload)
            return service.handle(payload)

    service = make_service()
    setup = build(SLM, LLM, ThresholdPolicy(-1))
    setup.uplink.link.transport = Watched()
    setup.generate(PROMPTS, STEPS)
    carrying = [setup.uplink.config.identity in _shifted(payload) for payload in sent]
    assert carrying == [True] + [False] * (len(sent) - 1)
    assert len(sent) == STEPS


def _shifted(payload):
    """The message at each of its eight bit offsets, one after the other."""
    number = int.from_bytes(payload, "big")
    size = len(payload) + 1
    return b"".join((number << shift).to_bytes(size, "big") for shift in range(8))


@pytest.mark.slow
def test_two_devices_of_one_number_at_a_real_server():
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    words = [sys.executable, "-m", "fedhlm_app", "serve", "llm", "--port", "0"]
    settings = Settings.from_sources({"policy": "never"}, {})
    prompts = [["Oil prices rose", "The match ended"], ["A new phone", "Voters in the north"]]

    def answers(texts, mine):
        return [written(texts, prompt, 24).text for prompt in mine]

    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        address = process.stdout.readline().split()[3]
        with ThreadPoolExecutor(2) as pool:
            devices = [
                ServedTexts(settings, 0, HttpTransport(address, timeout=120)) for _ in prompts
            ]
            found = list(pool.map(answers, devices, prompts))
    finally:
        process.kill()
        process.wait()
    engine = Engine(load_llm("builtin"), max_context=128)
    own = [ServedTexts(settings, 0, DirectTransport(LanguageModelService(engine))) for _ in prompts]
    assert found == [*map(answers, own, prompts)]
