from __future__ import annotations

import numpy as np
import pytest
import torch

from clients.decoding.lockstep import FusedLockstepDecoder
from clients.decoding.slm import LockstepDecoder
from clients.decoding.ways import lockstep_decoder
from fedhlm_app.models.load import load_pair
from tests.models import VOCAB, random_model


def prompts(lengths, vocab=VOCAB):
    generator = np.random.default_rng(0)
    return [generator.integers(1, vocab, length) for length in lengths]


def test_the_written_out_pass_is_chosen_where_there_is_one():
    assert isinstance(
        lockstep_decoder(random_model("qwen2"), prompts([2, 3])), FusedLockstepDecoder
    )
    assert isinstance(lockstep_decoder(random_model("gpt2"), prompts([2, 3])), LockstepDecoder)


@pytest.mark.parametrize("lengths", [[6] * 5, [3, 1, 7, 7, 2]], ids=["even", "ragged"])
def test_the_built_in_model_says_the_same(lengths):
    model = load_pair().slm
    texts = prompts(lengths, 4096)
    fast = lockstep_decoder(model, texts, hidden=True)
    plain = LockstepDecoder(model, texts, hidden=True)
    assert isinstance(fast, FusedLockstepDecoder)
    steps = [(fast.start(), plain.start())]
    for number in range(5):
        if number == 2:
            for decoder in (fast, plain):
                decoder.keep_rows(np.array([0, 3, 4]))
        tokens = steps[-1][1].logits.argmax(-1).numpy()
        if number == 2:
            tokens = tokens[[0, 3, 4]]
        steps.append((fast.step(tokens), plain.step(tokens)))
    for found, expected in steps:
        # To the last bit where the products are, which not every processor's are.
        torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.hidden, expected.hidden, atol=1e-5, rtol=1e-5)


def test_hidden_states_come_when_asked_for():
    assert lockstep_decoder(random_model("llama"), prompts([2])).start().hidden is None


@pytest.mark.parametrize("texts", [[], [np.empty(0, np.int64)]])
def test_an_empty_prompt_is_refused(texts):
    with pytest.raises(ValueError, match="at least one"):
        lockstep_decoder(random_model("llama"), texts)
