"""Who may ask a serving device, what it reads, and that no caller harms others."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

import pytest

from fedhlm_app.client.prompted import Token
from fedhlm_app.serve_device import service
from fedhlm_app.serve_device.questions import Question
from fedhlm_app.serve_device.refused import Refused
from fedhlm_app.serve_device.service import MOST_BYTES
from fedhlm_app.serve_device.stops import StopSequences
from servers.access import Tokens
from tests.fedhlm_app.serve_device.devices import PROMPT, Down, ask, served, serving, settings
from tests.servers.test_metrics import parsed

ADDRESS = "/v1/completions"
ASKED = {"prompt": PROMPT, "max_tokens": 2}


@pytest.fixture(scope="module")
def device(llm):
    texts = served(llm)
    with serving(texts, hosts={"127.0.0.1", "localhost", "::1", "my-device"}) as port:
        yield port, texts


@pytest.mark.parametrize(
    ("headers", "status", "why"),
    [
        ({"host": "evil.example"}, 403, "host = 'evil.example': this device is not asked by that"),
        ({"host": ""}, 403, "allowed: 127.0.0.1"),
        ({"host": "evil.example:8472"}, 403, "host = "),
        ({"origin": "https://evil.example"}, 403, "origin = 'https://evil.example': pages of"),
        ({"origin": "null"}, 403, "origin = 'null'"),
        ({"origin": "http://127.0.0.1:1"}, 403, "origin = "),
        ({"content-type": "text/plain"}, 415, "content-type = 'text/plain': must be"),
        ({"content-type": "application/x-www-form-urlencoded"}, 415, "must be application/json"),
        ({"content-type": ""}, 415, "must be application/json"),
        ({"content-type": "application/json; charset=utf-8"}, 200, ""),
        ({"host": "MY-device:8472", "origin": "http://my-device:8472"}, 200, ""),
        ({"host": "[::1]:8472"}, 200, ""),
    ],
)
def test_pages_of_other_sites_and_other_names_are_refused(device, headers, status, why):
    port, texts = device
    before = texts.counts["texts"]
    found, told = ask(port, ADDRESS, ASKED, headers)
    assert found == status, told
    assert texts.counts["texts"] == before + (status == 200)
    if why:
        assert why in told["error"]["message"]
        assert told["error"]["type"] == "invalid_request_error"
    # No page may read anything of it either.
    if status == 403:
        assert ask(port, "/v1/stats", None, headers)[0] == 403


def test_a_browser_that_asks_whether_it_may_is_not_told_so(device):
    connection = HTTPConnection("127.0.0.1", device[0], timeout=120)
    asking = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    connection.request("OPTIONS", ADDRESS, headers=asking)
    answer = connection.getresponse()
    assert answer.status == 403
    assert not [name for name, _ in answer.getheaders() if name.startswith("access-control")]


def test_with_a_token_only_the_page_is_open(llm, tmp_path):
    token = "a-token-of-a-test-0123456789"
    with serving(served(llm), tokens=Tokens(token)) as port:
        for wrong in ({}, {"authorization": "Bearer none"}):
            found, told = ask(port, ADDRESS, ASKED, wrong)
            assert (found, told["error"]["code"]) == (401, "invalid_api_key")
            assert ask(port, "/v1/stats", None, wrong)[0] == 401
        assert ask(port, ADDRESS, ASKED, {"authorization": f"Bearer {token}"})[0] == 200
        assert ask(port, "/")[0] == ask(port, "/health")[0] == 200


def test_who_watches_sees_tokens_and_whether_the_llm_is_there(llm):
    with serving(served(llm)) as port:
        ask(port, ADDRESS, ASKED)
        ask(port, ADDRESS, {"prompt": 3})
        found = parsed(ask(port, "/metrics")[1])
        assert ask(port, "/readyz") == (200, {"status": "ready"})
    tokens = [value for name, value in found.items() if name.startswith("fedhlm_tokens_total")]
    assert sum(tokens) == 2 and found["fedhlm_texts_total"] == found["fedhlm_llm_reached"] == 1
    assert found['fedhlm_refused_total{reason="invalid_value"}'] == 1
    with serving(served(llm, transport=Down(), initial_threshold=0.0), needs_llm=True) as port:
        assert ask(port, ADDRESS, ASKED)[0] == 503
        status, told = ask(port, "/readyz")
        assert status == 503 and "the LLM is not there: cut" in told["why"]
        assert parsed(ask(port, "/metrics")[1])["fedhlm_llm_reached"] == 0


def test_errors_have_one_shape(device):
    port, _ = device
    too_long = b" " * (MOST_BYTES + 1)
    for path, body, status, why in (
        ("/completions", b"{}", 404, "programs ask POST /v1/completions (base URL /v1)"),
        (ADDRESS, None, 405, "method not allowed; allowed: POST"),
        (ADDRESS, b"\xff", 400, "body: no JSON"),
        (ADDRESS, too_long, 413, "bytes are read"),
    ):
        found, told = ask(port, path, body)
        assert found == status and why in told["error"]["message"]
        assert told["error"].keys() == {"message", "type", "param", "code"}
    assert ask(port, "/health") == (200, {"status": "ok", "llm": "ok"})


def test_a_body_that_never_comes_is_not_waited_for(device, monkeypatch):
    monkeypatch.setattr(service, "BODY_SECONDS", 0.2)
    head = f"POST {ADDRESS} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", device[0]), timeout=120) as connection:
        connection.sendall(f"{head}content-length: 40\r\n\r\n{{".encode())
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 408") and b"body: not here within 0.2 s" in answer


@pytest.mark.parametrize(
    ("body", "param", "why"),
    [
        ("prompt", None, "body: no JSON"),
        (["prompt"], None, 'body = ["prompt"]: must be a JSON object'),
        ({}, "prompt", "prompt: is missing"),
        ({"prompt": 3}, "prompt", "prompt = 3: must be one text, or a list of one"),
        (
            {"prompt": ["a", "b"]},
            "prompt",
            '= ["a", "b"]: must be one text, or a list of one',
        ),
        ({"prompt": "a", "max_tokens": True}, "max_tokens", "max_tokens = true: input should be"),
        ({"prompt": "a", "max_tokens": "9"}, "max_tokens", 'max_tokens = "9"'),
        ({"prompt": "a", "stop": [""]}, "stop", 'stop = [""]: must be a text of at least one char'),
        ({"prompt": "a", "tokens": 9}, "tokens", "tokens = 9: a device does not know this field"),
        ({"prompt": "a", "n": 3}, "n", "n = 3: a device does not do that; allowed: 1"),
        ({"prompt": "a", "logit_bias": {"5": 1}}, "logit_bias", "allowed: {}"),
        ({"prompt": "a", "temperature": 1}, "temperature", "this device decodes greedy"),
    ],
)
def test_questions_that_are_none_are_named(body, param, why):
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    with pytest.raises(Refused) as refused:
        Question(content, False, settings())
    assert why in str(refused.value) and refused.value.param == param
    assert refused.value.status == 400


def test_fields_that_ask_for_nothing_are_read():
    body = {"prompt": ["a"], "n": 1, "user": "x", "tools": None, "echo": False, "top_p": 0.5}
    found = Question(json.dumps(body).encode(), False, settings())
    assert (found.prompt, found.most, found.stop, found.stream) == ("a", None, [], False)


@pytest.mark.parametrize(
    ("texts", "stops", "shown", "ended"),
    [
        (["ab", "cd"], [], "abcd", False),
        (["ab", "c", "de"], ["cd"], "ab", True),
        (["ab", "c", "xe"], ["cd"], "abcxe", False),
        (["a", "a", "a", "b"], ["aab"], "a", True),
        (["a", "", "b"], ["b"], "a", True),
        (["abcd"], ["d", "bc"], "a", True),
    ],
)
def test_what_may_begin_a_stop_sequence_is_held_back(texts, stops, shown, ended):
    sequences, told = StopSequences(stops), []
    for text in texts:
        tokens, over = sequences.add(Token(text, 0, 0.5))
        told += [token.text for token in tokens]
        # Nothing is shown that would have to be taken back.
        assert shown.startswith("".join(told))
    assert over == ended
    told += [token.text for token in sequences.rest()]
    assert "".join(told) == shown and len(told) == len(texts)


def test_whoever_leaves_ends_the_text(device, monkeypatch):
    port, texts = device
    began, gone = threading.Event(), threading.Event()
    session, answer, found = texts.session, texts.answer, []

    def waiting(seed):
        began.set()
        assert gone.wait(120)
        return session(seed)

    monkeypatch.setattr(texts, "session", waiting)
    monkeypatch.setattr(texts, "answer", lambda asks: found.extend(answer(asks)) or found)
    body = json.dumps({"prompt": PROMPT, "max_tokens": 60}).encode()
    connection = HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("POST", ADDRESS, body, {"content-type": "application/json"})
    assert began.wait(120)
    connection.close()
    while not ask(port, "/v1/stats")[1]["answers"].get("499"):
        time.sleep(0.01)
    gone.set()
    while ask(port, "/v1/stats")[1]["waiting"]:
        time.sleep(0.01)
    (text,) = found
    assert len(text.tokens) == 1


def test_too_many_questions(monkeypatch):
    texts = served(None, transport=Down())
    entered, go_on = threading.Event(), threading.Event()
    answer = texts.answer

    def slowly(asks):
        entered.set()
        assert go_on.wait(120)
        return answer(asks)

    monkeypatch.setattr(texts, "answer", slowly)
    with serving(texts, queue=1) as port:
        waiting = threading.Thread(target=ask, args=(port, ADDRESS, ASKED))
        waiting.start()
        assert entered.wait(120)
        status, told = ask(port, ADDRESS, ASKED)
        assert (status, told["error"]["message"]) == (503, "busy: 1 questions wait already")
        go_on.set()
        waiting.join()
        assert ask(port, ADDRESS, ASKED)[0] == 200


def test_who_comes_later_does_not_wait_unless_for_the_cache(llm, monkeypatch):
    for texts in (served(llm), served(llm, cache_mode="context")):
        entered, go_on, answer = threading.Event(), threading.Event(), texts.answer

        def first_slowly(asks, entered=entered, go_on=go_on, answer=answer):
            if not entered.is_set():
                entered.set()
                assert go_on.wait(120)
            return answer(asks)

        monkeypatch.setattr(texts, "answer", first_slowly)
        with serving(texts) as port, ThreadPoolExecutor(2) as pool:
            first = pool.submit(ask, port, ADDRESS, ASKED)
            assert entered.wait(120)
            later = pool.submit(ask, port, ADDRESS, ASKED)
            if not texts.in_turn:
                assert later.result()[0] == 200 and not first.done()
            while ask(port, "/v1/stats")[1]["waiting"] < 1 + texts.in_turn:
                time.sleep(0.01)
            go_on.set()
            answers = [one.result()[1]["choices"][0]["text"] for one in (first, later)]
            assert answers[0] == answers[1]


def test_a_model_that_fails_says_so_and_goes_on(monkeypatch):
    texts = served(None, transport=Down())

    def fails(asks):
        raise RuntimeError("no memory")

    with serving(texts) as port:
        with monkeypatch.context() as patch:
            patch.setattr(texts, "answer", fails)
            status, told = ask(port, ADDRESS, ASKED)
            assert status == 500 and "RuntimeError: no memory" in told["error"]["message"]
        assert ask(port, ADDRESS, ASKED)[0] == 200
