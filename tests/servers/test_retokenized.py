"""A pair whose models have different tokenizers: what is the large model's own text stays that."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies
from transformers import AutoModelForCausalLM

from clients.policy import FixedPolicy, RandomPolicy
from clients.records import Stage
from fedhlm_app.models.load import load_llm, load_slm
from fedhlm_app.models.vocabulary import load_tokenizer
from hlm.spans import TakeBack
from servers.backend import Feed, Unreadable
from servers.engine.engine import Engine
from servers.llm import LanguageModelService
from servers.retokenized import Retokenized
from servers.words import Words
from tests.other_tokenizers import save, wrapped
from tests.routed import build

PAIRS = [("unigram", "builtin"), ("builtin", "unigram"), ("unigram", "byte-level")]
PROMPTS = ["Shares of the airline", "  Naïve: café, 日本 🙂", "He said\n\nthat  it"]
ALL = FixedPolicy(kept=False)


@lru_cache
def words(kind):
    return Words(load_tokenizer() if kind == "builtin" else wrapped(kind))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made = {("builtin", 0): load_slm(), ("builtin", 1): load_llm()}
    for kind in ("unigram", "byte-level"):
        for role in (0, 1):
            folder = save(kind, tmp_path_factory.mktemp(kind), seed=5 + role)
            made[kind, role] = AutoModelForCausalLM.from_pretrained(folder).eval()
    return made


def device(models, pair, policy, sessions=8, **options):
    slm, llm = models[pair[0], 0], models[pair[1], 1]
    small, large = map(words, pair)
    setup = build(slm, llm, policy, end_tokens=frozenset([small.end]), **options)
    backend = Retokenized(Engine(llm, sessions, 128), small, large, slm.config.vocab_size)
    setup.link.service = LanguageModelService(backend)
    return setup, backend


def begun(pair, prompts=PROMPTS):
    small = words(pair[0])
    lead = [] if small.start is None else [small.start]
    return [np.array(lead + small.encode(text)) for text in prompts]


def own_tokens(llm, large, prompt, most=50):
    """What the large model writes alone, up to a special token."""
    ids = ([] if large.start is None else [large.start]) + large.encode(prompt)
    with torch.inference_mode():
        found = llm.generate(
            torch.tensor([ids]),
            max_new_tokens=most,
            do_sample=False,
            eos_token_id=sorted(large.special),
            pad_token_id=0,
        )[0].tolist()
    return found[:-1] if found[-1] in large.special else found


def text_of(pair, texts, row):
    ids = texts.text(row).tolist()
    small = words(pair[0])
    return small.said(ids[:-1] if ids[-1] == small.end else ids), ids[-1] == small.end


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("streamed", [False, True])
def test_what_is_escalated_whole_is_the_large_models_own_text(models, pair, streamed):
    options = (
        {"rule": TakeBack(2, np.array([[False, False, True]])), "window": 8} if streamed else {}
    )
    setup, _ = device(models, pair, ALL, **options)
    texts, records, _ = setup.generate(begun(pair), 20)
    assert not (records.stage == Stage.UNRESOLVED).any()
    other = []
    for row, prompt in enumerate(PROMPTS):
        said, ended = text_of(pair, texts, row)
        own = own_tokens(models[pair[1], 1], words(pair[1]), prompt)
        expected = words(pair[1]).said(own)
        assert said == expected if ended else (expected.startswith(said) and len(said) > 30)
        other.append(
            words(pair[1]).encode(expected) != own[-len(words(pair[1]).encode(expected)) :]
        )
    # Reading the text anew would have changed what the large model goes on from.
    assert any(other) or pair[1] == "builtin"


@pytest.mark.parametrize("pair", PAIRS)
def test_kept_tokens_are_read_behind_the_last_boundary_that_both_share(models, pair):
    setup, backend = device(models, pair, RandomPolicy(0.5))
    _, records, _ = setup.generate(begun(pair), 24)
    assert 0 < (records.stage == Stage.LOCAL).sum() < records.tokens
    small, large = map(words, pair)
    for text in backend._texts.values():
        assert len(text.shared) > 1
        for short, long in text.shared:
            assert small.said(text.course[:short]) == large.said(text.own[:long])


def test_a_text_is_the_same_beside_others_and_without_its_place_in_the_engine(models):
    pair = PAIRS[1]
    alone = [device(models, pair, ALL)[0].generate([one], 12)[0] for one in begun(pair)]
    setup, backend = device(models, pair, ALL)
    backend._model = Engine(models["unigram", 1], 1, 128)
    together, _, traffic = setup.generate(begun(pair), 12)
    assert traffic.failures == 0 and backend._model.stats.evictions > 3
    for row, one in enumerate(alone):
        assert together.text(row).tolist() == one.text(0).tolist()


class Oracle:
    """A large model whose every next token is anything, and always the same after the same."""

    offers, reading, slow = None, "an oracle", False
    max_sessions, max_context = 4, 400

    def __init__(self, large):
        self._large, self._texts = large, {}
        self.vocab, self.stats = large.size, None

    def held(self, session):
        return len(self._texts.get(session, []))

    def tokens(self, session):
        return np.array(self._texts[session])

    def score(self, feeds):
        found = []
        for feed in feeds:
            ids = self._texts.get(feed.session, [])[: feed.start] + feed.tokens.tolist()
            self._texts[feed.session] = ids
            assert feed.wanted.tolist() == [len(ids)]
            found.append(torch.zeros(1, self.vocab))
            found[-1][0, hash(tuple(ids)) % self.vocab] = 1.0
        return found


@pytest.mark.parametrize("pair", [*PAIRS, ("byte-level", "unigram")])
@given(prompt=strategies.text(min_size=1, max_size=12), data=strategies.data())
@settings(max_examples=30, deadline=None)
def test_both_see_the_same_text_whatever_it_is(pair, prompt, data):
    small, large = map(words, pair)
    backend = Retokenized(Oracle(large), small, large, small.size)
    tokens, start = small.encode(prompt), 0
    for _ in range(6):
        feed = Feed("text", start, np.array(tokens[start:]), np.array([len(tokens)]))
        (found,) = backend.score([feed])
        start = len(tokens)
        assert backend.held("text") == start
        text = backend._texts["text"]
        for short, long in text.shared:
            assert small.said(text.course[:short]) == large.said(text.own[:long])
        if isinstance(found, Unreadable):
            tokens.append(data.draw(strategies.integers(0, small.size - 1)))
            continue
        assert text.course[:start] == tokens and text.shared[-1][0] > 0
        if data.draw(strategies.booleans()):
            tokens.append(int(found[0].argmax()))
        else:
            tokens += small.encode(data.draw(strategies.text(min_size=1, max_size=6)))


@pytest.mark.parametrize(
    ("tokens", "why"),
    [
        ("🙂", "inside a character"),
        ("special", "special token"),
        ("nothing", "it is empty"),
        ("long", "more than 400 tokens"),
    ],
)
def test_what_text_does_not_tell_is_not_decided(tokens, why):
    small, large = words("byte-level"), words("unigram")
    hello = small.encode("Hello")
    ids = {
        "🙂": small.encode("Hello 🙂")[:-1],
        "special": [*hello, small.end, *hello],
        "nothing": [small.end],
        "long": small.encode("Hello there " * 400),
    }[tokens]
    backend = Retokenized(Oracle(large), small, large, small.size)
    # Beside one that is.
    feeds = [
        Feed("bad", 0, np.array(ids), np.array([len(ids)])),
        Feed("good", 0, np.array(hello), np.array([len(hello)])),
    ]
    bad, good = backend.score(feeds)
    assert isinstance(bad, Unreadable) and why in str(bad)
    assert good.shape == (1, small.size)


def test_text_that_goes_on_from_what_is_not_held_is_asked_for():
    small, large = words("byte-level"), words("unigram")
    backend = Retokenized(Oracle(large), small, large, small.size)
    assert backend.score([Feed("text", 3, np.array([5]), np.array([4]))]) == [None]
