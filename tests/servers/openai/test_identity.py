"""Text through an OpenAI-compatible server is that of the engine with the same model."""

from __future__ import annotations

from contextlib import contextmanager
from functools import lru_cache, partial

import numpy as np
import pytest

from clients.policy import FixedPolicy, ThresholdPolicy
from clients.records import Stage
from clients.resolvers.measuring import read_unseen
from fedhlm_app.hosting.backends import build_backend
from fedhlm_app.models.load import load_llm, load_slm
from fedhlm_app.models.vocabulary import load_tokenizer
from hlm.spans import TakeBack
from servers.backend import Feed
from servers.llm import LanguageModelService
from tests.fedhlm_app.in_process import settings_of
from tests.routed import build
from tests.servers.openai.fake import Fake

KINDS = ["vllm", "vllm-old", "llama.cpp", "llama-cpp-python", "hosted"]
TEXTS = ["Shares of the airline", "The café owner said", "The minister said 12"]
UNSEEN = "Naïve plans: the café in Gdynia"
"""Goes on with a token that is left out of text."""
NAMED = KINDS[:3]


@contextmanager
def backend_of(fake, **changes):
    with fake.serving() as url:
        yield build_backend(settings_of(llm_backend=f"openai:{url}", **changes))


def written(policy, backend=None, prompts=TEXTS, **options):
    setup = build(load_slm(), load_llm(), policy, **options)
    if backend is not None:
        setup.link.service = LanguageModelService(backend)
    encode = partial(load_tokenizer().encode, add_special_tokens=False)
    texts, records, traffic = setup.generate([np.array(encode(text)) for text in prompts], 8)
    if "rule" not in options:
        read_unseen(setup.uplink.sender, texts, records, traffic)
    return texts.tokens, records, traffic


@lru_cache
def of_the_engine(policy, prompts):
    return written(policy, prompts=prompts)


ALL, SURE = FixedPolicy(kept=False), ThresholdPolicy(0.5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", [ALL, SURE])
def test_text_choices_and_bytes_are_those_of_the_engine(kind, policy):
    with backend_of(Fake(kind)) as backend:
        texts = [*TEXTS, UNSEEN] if kind in NAMED else TEXTS
        tokens, records, traffic = written(policy, backend, texts)
    same, known, expected = of_the_engine(policy, tuple(texts))
    assert (tokens == same).all()
    assert traffic.failures == 0 and traffic.uplink == expected.uplink
    assert traffic.downlink == expected.downlink
    assert (records.choice == known.choice).all()
    assert (records.draft_choice == known.draft_choice).all()
    # What is among the five most likely is told to an eighth of a nat by those that tell any.
    likely = known.present & (known.draft_choice == 1)
    if kind != "llama-cpp-python":
        assert np.abs(records.log_prob - known.log_prob)[likely].max() <= 1 / 8


@pytest.mark.parametrize("kind", KINDS)
def test_streamed_spans_are_those_of_the_engine(kind):
    fake = Fake(kind)
    rule = TakeBack(2, np.array([[False, False, True]]))
    with backend_of(fake) as backend:
        tokens, _, traffic = written(SURE, backend, rule=rule, window=8)
        streamed = [body for body in fake.bodies if body.get("stream")]
    same, _, expected = written(SURE, rule=rule, window=8)
    assert (tokens == same).all() and traffic.failures == 0
    assert traffic.downlink == expected.downlink
    # One trial at the start; the others are texts.
    assert len(streamed) > 1 if kind in NAMED else len(streamed) == 0
    assert fake.stopped == len(streamed)


def test_a_stream_ends_where_text_does_not_tell_the_next_token():
    rule = TakeBack(2, np.array([[False, False, True]]))
    with backend_of(Fake("llama-cpp-python")) as backend:
        tokens, records, traffic = written(SURE, backend, [UNSEEN], rule=rule, window=8)
    same, _, _ = written(SURE, prompts=[UNSEEN], rule=rule, window=8)
    lost = int((records.stage[0] == Stage.UNRESOLVED).argmax())
    begin = tokens.shape[1] - 8
    assert (tokens[0, : begin + lost] == same[0, : begin + lost]).all()
    assert records.stage[0, lost] == Stage.UNRESOLVED and traffic.failures == 0


@pytest.mark.parametrize(
    ("kind", "reading"),
    [
        ("vllm", "token ids, answers with ids, several prompts a request, streams"),
        ("llama.cpp", "token ids, answers with ids, several prompts a request, streams"),
        ("hosted", "token ids, answers as text"),
        ("llama-cpp-python", "text, answers as text, no log-probabilities"),
    ],
)
def test_what_a_server_understands_is_found_out(kind, reading):
    with backend_of(Fake(kind)) as backend:
        assert backend.reading.endswith(f"/v1 ({reading})")
        assert backend.max_context == (100 if kind == "vllm" else 256)


def test_drafts_of_several_texts_go_up_in_one_request():
    fake = Fake("vllm")
    with backend_of(fake) as backend:
        before = len(fake.bodies)
        written(ALL, backend)
    lists = [body["prompt"] for body in fake.bodies[before:]]
    assert any(isinstance(prompt[0], list) and len(prompt) == len(TEXTS) for prompt in lists)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("follow", [0, 20])
def test_characters_of_several_tokens_are_told_whole(kind, follow):
    encode = partial(load_tokenizer().encode, add_special_tokens=False)
    start, script = encode("Today:"), encode("Today: naïve 🙂 café 12€, and 東京 too")
    assert script[: len(start)] == start and len(script) - len(start) > 20

    def scripted(ids):
        known = list(ids) == script[: len(ids)]
        return [(script[len(ids)] if known and len(ids) < len(script) else script[0], -0.1)]

    with backend_of(Fake(kind, model=scripted)) as backend:
        found = start
        session, new = 0, np.array(start)
        while len(found) < len(script) - 6:
            feed = Feed(session, len(found) - len(new), new, np.array([len(found)]), follow=follow)
            (logits,) = backend.score([feed])
            found = [*found, int(logits.argmax())]
            backend.append(session, found[-1])
            new = new[:0]
    assert found == script[: len(found)]


def test_a_token_that_text_does_not_show_stays_unresolved_and_the_others_are_decided():
    """It is none of the tokens that it could be taken for."""
    with backend_of(Fake("llama-cpp-python")) as backend:
        tokens, records, traffic = written(ALL, backend, [*TEXTS, UNSEEN])
    same, known, _ = of_the_engine(ALL, (*TEXTS, UNSEEN))
    assert (tokens[:3] == same[:3]).all() and traffic.failures == 0
    assert (records.stage == known.stage)[:3].all()
    first = int((records.stage[3] == Stage.UNRESOLVED).argmax())
    assert (records.token[3, :first] == known.token[3, :first]).all() and first > 0
    assert records.token[3, first] == records.draft[3, first]


def test_who_begins_text_after_text_loses_its_own():
    with backend_of(Fake("vllm"), llm_sessions=4) as backend:
        for number, owner in enumerate(["car", *["phone"] * 9]):
            backend.score([Feed(number, 0, np.array([5]), np.empty(0, np.int64), owner=(owner,))])
        assert [number for number in range(10) if backend.held(number)] == [0, 7, 8, 9]
        assert backend.stats.evictions == 6
