"""How the engine reads models of families that strain what a fast reader assumes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks._families import VOCAB, family_model
from hlm.reading.agreement import ModelRefusedError
from servers.backend import Feed
from servers.engine import packed_linear
from servers.engine.engine import Engine
from servers.engine.slot_memory import SlotMemory
from tests.models import random_model

CACHED = "one text at a time, with the model's own cache"
EXPECTED = {
    "Mistral, sliding window": "packed linear layers",
    "Llama 4": "packed linear layers",
    "DeepSeek-V2": "padded",
    "BLOOM": CACHED,
    "GPT-Neo": CACHED,
    "Mamba 2": CACHED,
    "RWKV": "every text from its start",
}


def plain_logits(model, tokens):
    with torch.inference_mode():
        return model(input_ids=torch.from_numpy(tokens)[None], use_cache=False).logits[0].float()


def assert_engine_is_plain(model, engine, length=60):
    """Ragged sessions, reached step by step and taken back at random, against full forwards."""
    generator = np.random.default_rng(3)
    texts = generator.integers(3, VOCAB, (4, length))
    for _ in range(12):
        feeds = []
        for row in generator.permutation(4)[: generator.integers(1, 5)]:
            start = max(0, min(engine.held(int(row)), 52) - int(generator.integers(0, 3)))
            texts[row, start:] = generator.integers(3, VOCAB, length - start)
            end = min(length, start + int(generator.integers(1, 16)))
            new = texts[row, start:end]
            feeds.append(Feed(int(row), start, new, np.arange(start + 1, end + 1)))
        for feed, logits in zip(feeds, engine.score(feeds), strict=True):
            expected = plain_logits(model, texts[feed.session][: feed.wanted[-1]])
            torch.testing.assert_close(logits, expected[feed.wanted - 1], atol=5e-3, rtol=1e-3)


@pytest.mark.parametrize("family", EXPECTED)
def test_a_family_is_read_as_the_plain_model_reads_it(family):
    model = family_model(family)
    engine = Engine(model, max_context=64)
    assert engine.way.name == EXPECTED[family]
    assert_engine_is_plain(model, engine)


def test_a_model_that_looks_ahead_is_refused_by_name():
    with pytest.raises(ModelRefusedError, match="BertLMHeadModel cannot be used: it is not causal"):
        Engine(family_model("BERT (reads both ways)"), max_context=32)


def test_a_model_that_is_not_deterministic_is_refused_by_name():
    model = random_model("llama")
    model.lm_head.register_forward_hook(lambda _, __, out: out + torch.randn_like(out))
    with pytest.raises(ModelRefusedError, match="not deterministic"):
        Engine(model, max_context=32)


def test_a_model_of_nan_is_refused_by_name():
    model = random_model("llama")
    torch.nn.init.constant_(model.model.norm.weight, torch.nan)
    with pytest.raises(ModelRefusedError, match=r"its logits are no numbers \(NaN\)"):
        Engine(model, max_context=32)


def test_packing_that_gives_other_logits_is_not_used(monkeypatch, caplog):
    def wrong(layer, rows):
        return 1.01 * torch.nn.functional.linear(rows, layer.weight, layer.bias) + 0.1

    monkeypatch.setattr(packed_linear.PackedLinear, "forward", wrong)
    model = random_model("gemma")
    engine = Engine(model, max_context=64)
    assert engine.way.name == "plain linear layers"
    assert "packed linear layers fails on texts of different length: logits differ" in caplog.text
    assert_engine_is_plain(model, engine)


def test_a_written_out_pass_that_gives_other_logits_is_not_used(monkeypatch, caplog):
    assert Engine(random_model("qwen2"), max_context=64).way.name == "written-out forward pass"
    attend = SlotMemory.attend
    monkeypatch.setattr(SlotMemory, "attend", lambda *given: 1.01 * attend(*given))
    model = random_model("qwen2")
    engine = Engine(model, max_context=64)
    assert engine.way.name == "packed linear layers"
    assert "written-out forward pass fails on texts of different length" in caplog.text
    assert_engine_is_plain(model, engine)


def test_a_slow_way_is_said_with_its_reason_and_tried_once(caplog):
    model = family_model("BLOOM")
    Engine(model, max_context=32)
    assert "BloomForCausalLM is read a slow way (one text at a time" in caplog.text
    caplog.clear()
    Engine(model, max_context=32)
    assert not caplog.text
