"""How a device decodes with models of families that strain what lockstep assumes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks._families import VOCAB, family_model
from clients.decoding import lockstep
from clients.decoding.ways import DeviceWays, best_ways, lockstep_decoder, rollback_decoder
from hlm.reading.agreement import ModelRefusedError
from tests.models import random_model

FUSED = "all texts in lockstep, by a written-out forward pass"
LOCKSTEP = "all texts in lockstep"
CACHED = "one text at a time, with the model's own cache"
FULL = "every text from its start"
EXPECTED = {
    "Qwen 2": DeviceWays(FUSED, FUSED),
    "BLOOM": DeviceWays(LOCKSTEP, LOCKSTEP),
    "GPT-Neo": DeviceWays(LOCKSTEP, CACHED),
    "Mistral, sliding window": DeviceWays(LOCKSTEP, CACHED),
    "Llama 4": DeviceWays(LOCKSTEP, CACHED),
    "Mamba 2": DeviceWays(CACHED, CACHED),
    "RWKV": DeviceWays(FULL, FULL),
}


def assert_plain(model, step, texts):
    for logits, text in zip(step.logits, texts, strict=True):
        with torch.inference_mode():
            plain = model(input_ids=torch.tensor(text)[None], use_cache=False).logits[0, -1]
        torch.testing.assert_close(logits, plain.float(), atol=5e-3, rtol=1e-3)


@pytest.mark.parametrize("family", EXPECTED)
def test_a_family_decodes_as_the_plain_model(family):
    model = family_model(family)
    assert best_ways(model, 64) == EXPECTED[family]
    generator = np.random.default_rng(2)
    texts = [generator.integers(3, VOCAB, length).tolist() for length in (40, 3, 17)]
    decoder = lockstep_decoder(model, [np.array(text) for text in texts])
    assert_plain(model, decoder.start(), texts)
    for count in range(4):
        if count == 2:
            decoder.keep_rows(np.array([1, 2]))
            texts = texts[1:]
        tokens = generator.integers(3, VOCAB, len(texts))
        texts = [[*text, token] for text, token in zip(texts, tokens.tolist(), strict=True)]
        assert_plain(model, decoder.step(tokens), texts)


@pytest.mark.parametrize("family", EXPECTED)
def test_a_family_takes_tokens_back_as_the_plain_model(family):
    model = family_model(family)
    generator = np.random.default_rng(4)
    texts = [generator.integers(3, VOCAB, length).tolist() for length in (30, 9, 17)]
    decoder = rollback_decoder(model, [np.array(text) for text in texts])
    decoder.start()
    for _ in range(4):
        counts, back = generator.integers(1, 4, 3), generator.integers(0, 3, 3)
        tokens = generator.integers(3, VOCAB, (3, 3))
        step = decoder.read(tokens, counts)
        texts = [
            text + line[3 - count :].tolist()
            for text, line, count in zip(texts, tokens, counts, strict=True)
        ]
        assert_plain(model, step, texts)
        decoder.take_back(back)
        texts = [text[: len(text) - count] for text, count in zip(texts, back, strict=True)]
        assert decoder.lengths.tolist() == [len(text) for text in texts]


def test_hidden_states_come_the_slow_way_too():
    step = lockstep_decoder(family_model("Mamba 2"), [np.arange(3, 12)], hidden=True).start()
    assert step.hidden.shape == (1, 32)


def test_a_model_that_looks_ahead_is_refused_by_name():
    with pytest.raises(ModelRefusedError, match="BertLMHeadModel cannot be used: it is not causal"):
        best_ways(family_model("BERT (reads both ways)"))


def test_a_written_out_pass_that_gives_other_logits_is_not_used(monkeypatch, caplog):
    class Wrong(lockstep.FusedDecoder):
        def logits(self, hidden):
            return super().logits(hidden).roll(1, -1)

    monkeypatch.setattr(lockstep, "FusedDecoder", Wrong)
    assert best_ways(random_model("llama")) == DeviceWays(LOCKSTEP, LOCKSTEP)
    assert "by a written-out forward pass fails on prompts of different length" in caplog.text


@pytest.mark.parametrize("prompts", [[], [np.empty(0, np.int64)]])
def test_an_empty_prompt_is_refused_the_slow_way_too(prompts):
    with pytest.raises(ValueError, match="at least one"):
        rollback_decoder(family_model("RWKV"), prompts)
