"""What OpenAI's own client, unchanged, gets from a serving device."""

from __future__ import annotations

import runpy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from clients.learning.feedback_store import FeedbackStore
from fedhlm_app.client.feedback_folder import FeedbackFolder
from fedhlm_app.serve_device import lockstep, service
from tests.fedhlm_app.serve_device.devices import (
    PROMPT,
    Down,
    Refusing,
    chatting,
    served,
    serving,
    settings,
    written,
)

EXAMPLE = Path(__file__).parents[3] / "examples" / "openai_client.py"
MODEL = "fedhlm"


def client_of(port: int) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"http://127.0.0.1:{port}/v1",
        api_key="none",
        max_retries=0,
        timeout=120,
        http_client=openai.DefaultHttpxClient(trust_env=False),
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return FeedbackFolder(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def texts(llm, store):
    return chatting(served(llm, store))


@pytest.fixture(scope="module")
def client(texts):
    with serving(texts) as port:
        yield client_of(port)


@pytest.fixture(scope="module")
def alone(llm):
    """The same device, asked in this process."""
    return chatting(served(llm))


def test_a_completion(client, alone):
    expected = written(alone, PROMPT, 12)
    found = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=12)
    assert found.choices[0].text == expected.text
    assert found.choices[0].finish_reason == ("stop" if expected.ended else "length")
    assert found.choices[0].logprobs is None
    assert found.usage.completion_tokens == len(expected.tokens)
    assert found.usage.prompt_tokens == len(alone.device.read_prompt(PROMPT, 12))
    told = found.fedhlm
    assert told["stages"] == expected.stages
    assert told["bytes"] == expected.as_json()["bytes"]
    assert (told["threshold"], told["round"]) == (0.3, 0)
    assert [one["text"] for one in told["tokens"]] == [one.text for one in expected.tokens]
    for way in ("uplink", "downlink"):
        assert sum(one[way] for one in told["tokens"]) == told["bytes"][way]


def test_a_streamed_completion(client, alone):
    expected = written(alone, PROMPT, 12)
    options = {"include_usage": True}
    chunks = list(
        client.completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=12, stream=True, stream_options=options
        )
    )
    *pieces, last, usage = chunks
    assert len(pieces) > 3
    assert "".join(one.choices[0].text for one in pieces) == expected.text
    assert [token["stage"] for one in pieces for token in one.fedhlm["tokens"]] == [
        token.stage.key for token in expected.tokens
    ]
    assert last.choices[0].finish_reason in ("stop", "length")
    assert last.fedhlm["stages"] == expected.stages
    assert usage.usage.completion_tokens == len(expected.tokens) and not usage.choices


@pytest.mark.parametrize("stream", [False, True])
def test_a_text_ends_before_a_stop_sequence(client, alone, stream):
    whole = written(alone, PROMPT, 20).text
    # It begins inside one token and ends inside another.
    stop = whole[11:19]
    found = client.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=20, stop=["no such words", stop], stream=stream
    )
    chunks = list(found) if stream else [found]
    assert "".join(one.choices[0].text for one in chunks) == whole[: whole.index(stop)]
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert sum(chunks[-1].fedhlm["stages"].values()) < 20


def test_a_chat(client, alone):
    messages = [
        {"role": "system", "content": "News."},
        {"role": "user", "content": [{"type": "text", "text": PROMPT}]},
    ]
    plain = [{"role": "system", "content": "News."}, {"role": "user", "content": PROMPT}]
    expected = written(alone, plain, 12)
    found = client.chat.completions.create(
        model=MODEL, messages=messages, max_completion_tokens=12, temperature=0
    )
    assert found.choices[0].message.role == "assistant"
    assert found.choices[0].message.content == expected.text
    assert found.fedhlm["stages"] == expected.stages
    chunks = list(
        client.chat.completions.create(model=MODEL, messages=messages, max_tokens=12, stream=True)
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(one.choices[0].delta.content or "" for one in chunks) == expected.text
    assert chunks[-1].choices[0].finish_reason == found.choices[0].finish_reason


def test_the_example(client, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", str(client.base_url))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    runpy.run_path(str(EXAMPLE))
    *tokens, last = capsys.readouterr().out.splitlines()
    assert 1 <= len(tokens) <= 20 and "'uplink'" in last


def test_log_probabilities_of_the_small_models_tokens(client):
    asked = {"model": MODEL, "max_tokens": 12}
    found = client.completions.create(prompt=PROMPT, logprobs=0, **asked)
    told = found.choices[0].logprobs
    assert told.tokens == [one["text"] for one in found.fedhlm["tokens"]]
    pairs = zip(told.tokens, told.text_offset, strict=True)
    assert all(found.choices[0].text[at:].startswith(token) for token, at in pairs)
    stages = [one["stage"] for one in found.fedhlm["tokens"]]
    for stage, logprob in zip(stages, told.token_logprobs, strict=True):
        assert (logprob is None) == (stage == "llm_resampled")
        assert logprob is None or logprob <= 0
    messages = [{"role": "user", "content": PROMPT}]
    chat = client.chat.completions.create(messages=messages, logprobs=True, **asked)
    assert any(one.logprob for one in chat.choices[0].logprobs.content)


def test_models(client):
    assert [one.id for one in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_wrong_questions_are_named(client):
    good = {"model": MODEL, "prompt": PROMPT}
    for changed, kind, param in (
        ({"model": "gpt-4"}, openai.NotFoundError, "model"),
        ({"temperature": 0.7}, openai.BadRequestError, "temperature"),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens"),
        ({"max_tokens": 500}, openai.BadRequestError, "prompt"),
        ({"n": 2}, openai.BadRequestError, "n"),
        ({"extra_body": {"colour": 1}}, openai.BadRequestError, "colour"),
        ({"extra_headers": {"content-type": "text/plain"}}, openai.APIStatusError, None),
    ):
        with pytest.raises(kind) as refused:
            client.completions.create(**{**good, **changed})
        assert refused.value.param == param and refused.value.type == "invalid_request_error"
        assert param is None or param in refused.value.message
    assert refused.value.status_code == 415
    with pytest.raises(openai.APIStatusError) as refused:
        client.completions.create(model=MODEL, prompt="a" * (1 << 20))
    assert refused.value.status_code == 413


@pytest.mark.parametrize("together", [True, False])
def test_questions_at_the_same_time_are_answered_as_alone(
    llm, alone, tmp_path, monkeypatch, together
):
    monkeypatch.setattr(lockstep, "TOGETHER_SECONDS", 120 if together else 0)
    monkeypatch.setattr(service, "TOGETHER", 8)
    prompts = [f"{PROMPT} in {place}" for place in ("Paris", "London", "Rome", "Oslo") * 2]
    expected = [written(alone, prompt, 6 + at).text for at, prompt in enumerate(prompts)]
    store = FeedbackFolder(tmp_path)
    texts, sizes = served(llm, store), []
    answer = texts.answer
    monkeypatch.setattr(texts, "answer", lambda asks: sizes.append(len(asks)) or answer(asks))
    with serving(texts) as port:
        client = client_of(port)

        def question(at: int) -> str:
            found = client.completions.create(model=MODEL, prompt=prompts[at], max_tokens=6 + at)
            return found.choices[0].text

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(question, range(8))) == expected
    assert sizes == [8] if together else sum(sizes) == 8
    with FeedbackStore(store.store_file) as after:
        assert len(after.read()[1]) == 8


def test_a_seed_repeats_a_text(llm):
    with serving(served(llm, decoding="sampled", verification="coupled")) as port:
        asked = {"model": MODEL, "prompt": PROMPT, "max_tokens": 10}

        def text(seed: int | None) -> str:
            found = client_of(port).completions.create(**asked, seed=seed)
            return found.choices[0].text

        with ThreadPoolExecutor(3) as pool:
            first, again, other = pool.map(text, (7, 7, 8))
        assert first == again == text(7) != other
        assert text(None) != text(None)
        allowed = {"temperature": settings().temperature, "top_p": settings().top_p}
        client_of(port).completions.create(**asked, **allowed)
        with pytest.raises(openai.BadRequestError, match="top_p"):
            client_of(port).completions.create(**asked, top_p=0.5)


def test_without_the_llm_a_text_goes_on_unless_it_must_not():
    asked = {"model": MODEL, "prompt": PROMPT, "max_tokens": 20}
    texts = served(None, transport=Down())
    with serving(texts) as port:
        found = client_of(port).completions.create(**asked)
        assert found.fedhlm["stages"]["unresolved"] > 0 < found.fedhlm["stages"]["local"]
    texts = served(None, transport=Down(), initial_threshold=0.9)
    with serving(texts, needs_llm=True) as port:
        with pytest.raises(openai.InternalServerError, match="the LLM is not there: cut") as lost:
            client_of(port).completions.create(**asked)
        assert (lost.value.status_code, lost.value.code) == (503, "llm_unreachable")
        # What was sure has been shown; then the stream ends with the reason.
        shown = []
        with pytest.raises(openai.APIError, match="the LLM is not there"):
            for chunk in client_of(port).completions.create(**asked, stream=True):
                shown += chunk.fedhlm["tokens"]
        assert shown and {one["stage"] for one in shown} == {"local"}


def test_an_llm_that_refuses():
    with serving(served(None, transport=Refusing(), policy="never")) as port:
        with pytest.raises(openai.InternalServerError, match="vocabulary 7") as refused:
            client_of(port).completions.create(model=MODEL, prompt=PROMPT)
        assert refused.value.status_code == 502
