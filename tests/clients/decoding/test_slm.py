from __future__ import annotations

import numpy as np
import pytest
import torch

from clients.decoding.slm import LockstepDecoder, read_texts
from tests.models import ARCHITECTURES, VOCAB, random_model


def prompts(count=4, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.integers(1, VOCAB, generator.integers(2, 12)) for _ in range(count)]


def plain(model, tokens):
    with torch.inference_mode():
        return model(input_ids=torch.from_numpy(np.asarray(tokens))[None]).logits[0].float()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lockstep_equals_one_text_at_a_time(architecture):
    model = random_model(architecture)
    texts = [list(prompt) for prompt in prompts()]
    decoder = LockstepDecoder(model, [np.array(text) for text in texts])
    step = decoder.start()
    generator = np.random.default_rng(2)
    for _ in range(6):
        for row, text in enumerate(texts):
            torch.testing.assert_close(
                step.logits[row], plain(model, text)[-1], atol=2e-4, rtol=2e-4
            )
        tokens = generator.integers(1, VOCAB, len(texts))
        for text, token in zip(texts, tokens, strict=True):
            text.append(token)
        step = decoder.step(tokens)


def test_rows_that_end_leave_the_batch():
    model = random_model("llama")
    texts = [list(prompt) for prompt in prompts()]
    decoder = LockstepDecoder(model, [np.array(text) for text in texts])
    decoder.start()
    decoder.keep_rows(np.array([1, 3]))
    step = decoder.step(np.array([5, 6]))
    for row, (text, token) in enumerate([(texts[1], 5), (texts[3], 6)]):
        torch.testing.assert_close(
            step.logits[row], plain(model, [*text, token])[-1], atol=2e-4, rtol=2e-4
        )


def test_hidden_states_come_when_asked_for():
    model = random_model("gpt2")
    step = LockstepDecoder(model, prompts(), hidden=True).start()
    assert step.hidden is not None
    assert step.hidden.shape == (4, 32)
    assert LockstepDecoder(model, prompts()).start().hidden is None


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_read_texts_equals_one_text_at_a_time(architecture):
    model = random_model(architecture)
    texts = prompts(5, seed=3)
    for step, text in zip(read_texts(model, texts, hidden=True, max_tokens=24), texts, strict=True):
        torch.testing.assert_close(step.logits, plain(model, text)[:-1], atol=2e-4, rtol=2e-4)
        assert step.hidden.shape == (len(text) - 1, 32)


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="at least one token"):
        LockstepDecoder(random_model("llama"), [np.empty(0, np.int64)])
    with pytest.raises(ValueError, match="at least one prompt"):
        LockstepDecoder(random_model("llama"), [])
