"""Servers that are slow, busy, broken or lying: texts and counts are right, or unresolved."""

from __future__ import annotations

import asyncio
import logging
import time

import numpy as np
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from clients.policy import FixedPolicy
from clients.records import Stage
from fedhlm_app.hosting.backends import build_backend, check_backend
from fedhlm_app.models.load import load_llm, load_slm
from fedhlm_app.models.vocabulary import load_tokenizer
from fedhlm_app.settings import SettingsError
from fedhlm_app.transport.http_transport import HttpTransport
from hlm.transport import LinkDown, LinkRefused
from hlm.wire import decode_reply, encode_request
from servers.backend import Feed
from servers.llm import LanguageModelService
from tests.asking import request_of
from tests.fedhlm_app.in_process import settings_of
from tests.routed import build
from tests.served import serving
from tests.servers.openai.fake import KEY, MODEL, Fake, greedy
from tests.wire_rows import Row, told

PROMPT = load_tokenizer().encode("Shares of the airline", add_special_tokens=False)


def backend_at(url, **changes):
    return build_backend(settings_of(llm_backend=f"openai:{url}", **changes))


def routed(backend, new_tokens=6):
    setup = build(load_slm(), load_llm(), FixedPolicy(kept=False))
    setup.link.service = LanguageModelService(backend)
    texts, records, traffic = setup.generate([np.array(PROMPT)], new_tokens)
    return texts.tokens[0].tolist(), records, traffic


def assert_right_or_unresolved(tokens, records):
    """Whatever the LLM is said to have decided it has; elsewhere the draft stands."""
    for place, stage in enumerate(records.stage[0].tolist()):
        text = tokens[: len(PROMPT) + place]
        if stage in (Stage.LLM_ACCEPTED, Stage.LLM_RESAMPLED):
            assert tokens[len(text)] == greedy(tuple(text))[0][0]
        else:
            assert stage == Stage.UNRESOLVED
            assert tokens[len(text)] == records.draft[0, place]


def after_the_trial(answers):
    """A fault in place of two answers of four, once the server's ways are known."""
    asked = []

    def fault(number, body):
        if PROMPT == body["prompt"][: len(PROMPT)]:
            asked.append(number)
            return answers(body) if len(asked) % 4 in (1, 2) else None
        return None

    return fault


def cut(body):
    async def half():
        yield b'{"choices": [{"index": 0, "te'
        raise ConnectionResetError

    return StreamingResponse(half(), headers={"content-length": "2000"})


BROKEN = {
    "not JSON": lambda body: PlainTextResponse("<html>gateway</html>"),
    "half an answer": cut,
    "no choices": lambda body: JSONResponse({"choices": []}),
    "an error as an answer": lambda body: JSONResponse({"error": {"message": "overloaded"}}),
    "too many choices": lambda body: JSONResponse({"choices": [{"text": "a"}, {"text": "b"}]}),
    "refused": lambda body: JSONResponse({"error": "context too long"}, 400),
    "a redirect": lambda body: Response(status_code=307, headers={"location": "/"}),
}


@pytest.mark.parametrize("wrong", BROKEN)
def test_broken_answers_leave_tokens_unresolved(wrong):
    with Fake("vllm", fault=after_the_trial(BROKEN[wrong])).serving() as url:
        tokens, records, traffic = routed(backend_at(url))
    assert_right_or_unresolved(tokens, records)
    assert traffic.failures > 0
    assert (records.stage == Stage.UNRESOLVED).sum() + traffic.decoded == records.stage.size


def lie(**wrong):
    return lambda choice: {**choice, **wrong}


def unlikely(choice):
    tops = choice["logprobs"]["top_logprobs"][0]
    last = min(tops, key=tops.get)
    names = {"tokens": [last], "token_logprobs": [tops[last]]}
    token = int(last.removeprefix("token_id:"))
    text = load_tokenizer().decode([token])
    return {
        **choice,
        "token_ids": [token],
        "text": text,
        "logprobs": {**choice["logprobs"], **names},
    }


def beyond(choice):
    tops = [{**top, "token_id:4096": -3.0} for top in choice["logprobs"]["top_logprobs"]]
    return {**choice, "logprobs": {**choice["logprobs"], "top_logprobs": tops}}


def nan(choice):
    number = {**choice["logprobs"], "token_logprobs": [float("nan")]}
    return {**choice, "logprobs": number}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lie(token_ids=[4096]), r"token 4096: the vocabulary has 4096"),
        (lie(token_ids=[-1]), r"token -1"),
        (lie(token_ids=["7"]), r"token '7'"),
        (lie(token_ids=[274], text=" of"), r"token 274 is ' the', and not ' of'"),
        (lie(text=None), r"0 choices|choices with text"),
        (beyond, r"token 4096: the vocabulary has 4096"),
        (nan, r"log-probability nan"),
        (unlikely, r"does not decode greedily"),
    ],
)
def test_a_server_that_lies_is_told_by_its_answers(change, said):
    lying = []
    fake = Fake("vllm", change=lambda choice: change(choice) if lying else choice)
    with fake.serving() as url:
        backend = backend_at(url)
        lying.append(True)
        with pytest.raises(LinkDown, match=said):
            backend.score([Feed(0, 0, np.array(PROMPT), np.array([len(PROMPT)]))])
        lying.clear()
        (logits,) = backend.score([Feed(0, 0, np.array(PROMPT), np.array([len(PROMPT)]))])
    assert int(logits.argmax()) == greedy(tuple(PROMPT))[0][0]


def test_a_busy_server_is_asked_again_when_it_says():
    times = []

    def fault(number, body):
        times.append(time.monotonic())
        if number % 3:
            return None
        wait = "0.3" if number else "Thu, 01 Jan 2015 00:00:00 GMT"
        return Response(status_code=429, headers={"retry-after": wait})

    with Fake("llama.cpp", fault=fault).serving() as url:
        tokens, records, traffic = routed(backend_at(url))
    assert_right_or_unresolved(tokens, records)
    assert traffic.failures == 0 and (records.stage != Stage.UNRESOLVED).all()
    assert times[4] - times[3] >= 0.3


def test_a_pause_that_nobody_waits_for_is_not_waited_for():
    fault = after_the_trial(lambda body: Response(status_code=503, headers={"retry-after": "900"}))
    with Fake("vllm", fault=fault).serving() as url:
        backend = backend_at(url)
        begin = time.monotonic()
        with pytest.raises(LinkDown, match="answered 503"):
            backend.score([Feed(0, 0, np.array(PROMPT), np.array([len(PROMPT)]))])
        assert time.monotonic() - begin < 60


def test_a_server_that_drips_is_late_and_then_left_alone():
    async def drops():
        for _ in range(20):
            yield b" "
            await asyncio.sleep(0.05)

    fault = after_the_trial(lambda body: StreamingResponse(drops()))
    with Fake("vllm", fault=fault).serving() as url:
        backend = backend_at(url)
        backend._client.seconds = 0.4
        feed = Feed(0, 0, np.array(PROMPT), np.array([len(PROMPT)]))
        for _ in range(2):
            with pytest.raises(LinkDown, match=r"no answer within 0\.4 s"):
                backend.score([feed])
    with pytest.raises(LinkDown):
        backend.score([feed])


def test_a_server_that_dies_within_a_text_leaves_it_right():
    fake = Fake("vllm")
    with fake.serving() as url:
        backend = backend_at(url)
        service = LanguageModelService(backend)
        setup = build(load_slm(), load_llm(), FixedPolicy(kept=False))
        setup.link.service = service
        first = setup.generate([np.array(PROMPT)], 3)
    texts, records, traffic = setup.generate([np.array(PROMPT)], 6, sessions=np.array([1]))
    assert (first[1].stage != Stage.UNRESOLVED).all()
    assert (records.stage == Stage.UNRESOLVED).all() and traffic.failures > 0
    assert texts.tokens[0, len(PROMPT) :].tolist() == records.draft[0].tolist()
    assert "no answer" in setup.uplink.link.problem


def test_a_device_behind_our_wire_hears_why_there_is_no_answer():
    with Fake("vllm").serving() as url:
        service = LanguageModelService(backend_at(url))
        with serving(service) as (port, served):
            link = HttpTransport(f"127.0.0.1:{port}", 60.0)
            request = request_of("greedy", [Row(0, 0, np.array(PROMPT), 7)], vocab=4096)
            (found,) = told(decode_reply(link.exchange(encode_request(request)), request))
            assert found.token == greedy(tuple(PROMPT))[0][0]
            backend, service.engine._client.url = service.engine, "http://127.0.0.1:9/v1"
            with pytest.raises(LinkDown, match=r"answered 502: the LLM server .*:9/v1: no answer"):
                link.exchange(encode_request(request))
            assert served.counts["502"] == 1 and backend.stats.passes == 1
            link.close()


def test_the_key_goes_to_the_server_and_into_no_message(monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    with Fake("vllm", key=KEY).serving() as url:
        monkeypatch.setenv("FEDHLM_LLM_KEY", KEY)
        backend = backend_at(url)
        assert KEY not in backend.reading
        for wrong, said in (("sk-wrong-0123456789", "refuses the key"), ("", "wants a key")):
            monkeypatch.setenv("FEDHLM_LLM_KEY", wrong)
            with pytest.raises(LinkRefused, match=f"{said}.*FEDHLM_LLM_KEY, status 401") as error:
                backend_at(url)
            assert not wrong or wrong not in str(error.value)
    assert KEY not in caplog.text and "sk-wrong" not in caplog.text
    monkeypatch.setenv("FEDHLM_LLM_KEY", KEY)
    with pytest.raises(SettingsError, match="would travel unencrypted"):
        backend_at("http://llm.example/v1")


def test_what_does_not_fit_is_said_before_the_first_text():
    with Fake("vllm").serving() as url:
        with pytest.raises(ValueError, match=f"does not serve the model 'mine'; it serves {MODEL}"):
            backend_at(f"{url}#mine")
        with pytest.raises(ValueError, match=r"no completions for model 'mine'.*answered 404"):
            backend_at(f"{url}/more#mine")
        with pytest.raises(ValueError, match="does not tell its models; name one"):
            backend_at(f"{url}/more")
    other = Fake("vllm")
    answer = other._answer
    other._answer = lambda *args: {**answer(*args), "usage": {"prompt_tokens": 21}}
    with (
        other.serving() as url,
        pytest.raises(ValueError, match=r"as 21 tokens.*let llm \(--llm\) name the server's own"),
    ):
        backend_at(url)


@pytest.mark.parametrize("value", ["openai:localhost", "openai:", "openai:http://u:pw@host/v1"])
def test_a_url_that_is_none_is_refused_by_name(value):
    with pytest.raises(SettingsError, match="openai:URL or openai:URL#MODEL") as error:
        check_backend(settings_of(llm_backend=value))
    assert "pw" not in str(error.value)


def test_sampled_decoding_is_refused_by_name():
    settings = settings_of(llm_backend="openai:http://127.0.0.1:1/v1", decoding="sampled")
    with pytest.raises(SettingsError, match=r"'coupled': it needs whole.*with it: greedy"):
        check_backend(settings)
