from __future__ import annotations

import numpy as np
import pytest
import torch

from servers.backend import Feed
from servers.engine import packed_attention, packed_linear, slots
from servers.engine.engine import Engine, EngineError, context_limit
from tests.models import ARCHITECTURES, VOCAB, random_model


def plain_logits(model, tokens):
    with torch.inference_mode():
        return model(input_ids=torch.from_numpy(tokens)[None]).logits[0].float()


def feed(session, tokens, start=0, wanted=None):
    tokens = np.asarray(tokens, np.int64)
    end = start + len(tokens)
    places = np.array([end] if wanted is None else wanted, np.int64)
    return Feed(session, start, tokens, places)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_ragged_sessions_equal_the_plain_model(architecture, attention):
    model = random_model(architecture)
    model.set_attn_implementation(attention)
    engine = Engine(model, max_sessions=8, max_context=48)
    generator = np.random.default_rng(1)
    texts = generator.integers(1, VOCAB, (5, 40))
    reached = np.zeros(5, int)
    while (reached < 40).any():
        rows = generator.permutation(np.flatnonzero(reached < 40))[: generator.integers(1, 6)]
        feeds = []
        for row in rows:
            count = min(int(generator.integers(1, 12)), 40 - reached[row])
            end = reached[row] + count
            wanted = np.arange(max(1, reached[row]), end + 1)
            feeds.append(feed(int(row), texts[row, reached[row] : end], reached[row], wanted))
        for one, logits in zip(feeds, engine.score(feeds), strict=True):
            expected = plain_logits(model, texts[one.session])[one.wanted - 1]
            torch.testing.assert_close(logits, expected, atol=2e-4, rtol=2e-4)
            reached[one.session] = one.wanted[-1]


def test_a_rolled_back_token_leaves_no_trace():
    model = random_model("llama")
    engine = Engine(model, max_context=32)
    engine.score([feed("a", [1, 2, 3, 4, 5, 6])])
    (logits,) = engine.score([feed("a", [9, 8], start=3)])
    expected = plain_logits(model, np.array([1, 2, 3, 9, 8]))[-1:]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert engine.held("a") == 5


def test_an_appended_token_is_read_with_the_next_request():
    model = random_model("qwen2")
    engine = Engine(model, max_context=32)
    engine.score([feed("a", [1, 2, 3])])
    engine.append("a", 7)
    assert engine.held("a") == 4
    (logits,) = engine.score([feed("a", [5], start=4)])
    expected = plain_logits(model, np.array([1, 2, 3, 7, 5]))[-1:]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_a_repeated_question_gets_the_same_answer():
    engine = Engine(random_model("gpt2"), max_context=32)
    (first,) = engine.score([feed("a", [1, 2, 3])])
    (again,) = engine.score([feed("a", [], start=3)])
    torch.testing.assert_close(first, again, atol=1e-5, rtol=1e-5)


def test_a_full_table_evicts_the_least_recently_used():
    engine = Engine(random_model("llama"), max_sessions=2, max_context=16)
    for session in ("a", "b"):
        engine.score([feed(session, [1, 2])])
    engine.score([feed("a", [3], start=2)])
    engine.score([feed("c", [4, 5])])
    assert (engine.held("a"), engine.held("b"), engine.held("c")) == (3, 0, 2)
    assert engine.stats.evictions == 1


def test_more_texts_than_sessions_are_served_in_waves():
    model = random_model("llama")
    engine = Engine(model, max_sessions=3, max_context=16)
    texts = np.random.default_rng(0).integers(1, VOCAB, (7, 5))
    for row, logits in enumerate(engine.score([feed(i, text) for i, text in enumerate(texts)])):
        torch.testing.assert_close(
            logits[0], plain_logits(model, texts[row])[-1], atol=1e-4, rtol=1e-4
        )


def test_no_question_costs_no_pass():
    engine = Engine(random_model("llama"), max_context=16)
    engine.score([feed("a", [1, 2], wanted=[])])
    assert engine.held("a") == 2
    assert engine.stats.passes == 0


def test_a_pass_stays_below_its_token_limit():
    engine = Engine(random_model("llama"), max_sessions=16, max_context=32, max_batch_tokens=40)
    engine.score([feed(i, np.ones(10)) for i in range(16)])
    assert engine.stats.passes == 4


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (feed("a", [1], start=3), "holds 0"),
        (feed("a", np.ones(17)), "at most 16"),
        (feed("a", [VOCAB]), f"0 .. {VOCAB - 1}"),
        (feed("a", [-1]), "ids must lie"),
        (feed("a", [1, 2], wanted=[0]), "positions must increase"),
        (feed("a", [1, 2], wanted=[3]), "positions must increase"),
        (feed("a", [1, 2], wanted=[2, 1]), "positions must increase"),
    ],
)
def test_a_bad_request_is_refused_and_changes_nothing(bad, words):
    engine = Engine(random_model("llama"), max_context=16)
    with pytest.raises(EngineError, match=words):
        engine.score([feed("good", [1, 2]), bad])
    assert engine.held("good") == 0


def test_one_session_twice_is_refused():
    with pytest.raises(EngineError, match="only once"):
        Engine(random_model("llama"), max_context=16).score([feed("a", [1]), feed("a", [2])])


def test_limits_name_the_setting():
    model = random_model("llama")
    assert context_limit(model) == 64
    with pytest.raises(EngineError, match="max_context = 65"):
        Engine(model, max_context=65)
    with pytest.raises(EngineError, match="max_sessions = 0"):
        Engine(model, max_sessions=0, max_context=8)


def test_a_window_too_long_to_be_tried_limits_the_context():
    model = random_model("qwen2")
    model.config.layer_types = ["sliding_attention", "full_attention"]
    model.config.max_position_embeddings = 32768
    model.config.sliding_window = 24
    assert context_limit(model) == 32768
    model.config.sliding_window = 4096
    assert context_limit(model) == 4096
    model.config.layer_types = ["full_attention", "full_attention"]
    assert context_limit(model) == 32768


def test_a_session_that_loses_its_place_within_a_call_is_reported():
    engine = Engine(random_model("llama"), max_sessions=2, max_context=16)
    engine.score([feed("a", [1, 2]), feed("b", [1, 2])])
    found = engine.score([feed("c", [3]), feed("d", [4]), feed("a", [5], start=2)])
    assert found[0] is not None
    assert found[1] is not None
    assert found[2] is None
    assert engine.held("a") == 0


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_attention_of_few_queries_is_attention(key_heads):
    generator = torch.Generator().manual_seed(4)
    queries = torch.randn(3, 4, 5, 8, generator=generator)
    keys, values = torch.randn(2, 3, key_heads, 12, 8, generator=generator)
    mask = torch.zeros(3, 1, 5, 12)
    mask[1, :, :3, 4:] = -torch.inf
    shared = 4 // key_heads
    expected = torch.nn.functional.scaled_dot_product_attention(
        queries,
        keys.repeat_interleave(shared, 1),
        values.repeat_interleave(shared, 1),
        attn_mask=mask,
        scale=0.3,
    )
    bias = packed_attention.bias_of_heads(mask, 4, key_heads)
    found = packed_attention.attention_of_few(queries, keys, values, bias, 0.3)
    torch.testing.assert_close(found, expected.transpose(1, 2), atol=1e-6, rtol=1e-5)


def test_much_attention_is_fused_and_the_same(monkeypatch):
    texts = np.random.default_rng(2).integers(1, VOCAB, (3, 20))
    feeds = [feed(row, text[: 8 + 5 * row]) for row, text in enumerate(texts)]
    few = Engine(random_model("qwen2"), max_context=32).score(feeds)
    monkeypatch.setattr(packed_attention, "MOST_SCORES", 0)
    fused = Engine(random_model("qwen2"), max_context=32).score(feeds)
    for one, other in zip(few, fused, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_company_changes_results_by_rounding_and_nothing_says_less():
    model = random_model("llama")
    texts = np.random.default_rng(5).integers(1, VOCAB, (6, 30))
    feeds = [feed(row, text[: 5 + 4 * row]) for row, text in enumerate(texts)]
    together = Engine(model, max_context=32).score(feeds)
    for one, found in zip(feeds, together, strict=True):
        (alone,) = Engine(model, max_context=32).score([one])
        torch.testing.assert_close(found, alone, atol=1e-4, rtol=1e-5)
    # Equal bits were claimed once, and hold on no processor for texts of different length.
    for module in (slots, packed_linear):
        assert "does not depend on" not in module.__doc__
