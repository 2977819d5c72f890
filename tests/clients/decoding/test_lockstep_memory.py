from __future__ import annotations

import numpy as np
import pytest
import torch

from clients.decoding.lockstep_memory import LockstepMemory
from hlm.reading.fused import FusedDecoder
from tests.models import VOCAB, random_model


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("ragged", [False, True])
@torch.inference_mode()
def test_rows_that_grow_and_go_are_read_as_whole_texts(architecture, ragged):
    model = random_model(architecture)
    decoder, rng = FusedDecoder(model), np.random.default_rng(0)
    lengths = [5, 2, 9, 9] if ragged else [9] * 4
    texts = [torch.from_numpy(rng.integers(1, VOCAB, length)) for length in lengths]
    mask, tokens = torch.zeros(4, 9, dtype=torch.bool), torch.zeros(4, 9, dtype=torch.int64)
    for row, text in enumerate(texts):
        mask[row, 9 - len(text) :], tokens[row, 9 - len(text) :] = True, text
    memory = LockstepMemory(decoder.shape, mask)
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    wanted = torch.arange(4) * 9 + 8
    found = decoder.logits(decoder.read(tokens.flatten(), positions.flatten(), 64, memory, wanted))
    positions = positions[:, -1]
    # More steps than the memory has room for at first.
    for step in range(40):
        expected = torch.cat([model(text[None]).logits[:, -1] for text in texts])
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
        if step == 3:
            kept = torch.tensor([0, 2])
            memory.keep_rows(kept)
            texts, positions = [texts[0], texts[2]], positions[kept]
        new = torch.from_numpy(rng.integers(1, VOCAB, len(texts)))
        texts = [torch.cat([text, token[None]]) for text, token in zip(texts, new, strict=True)]
        positions = positions + 1
        memory.next_column()
        every = torch.arange(len(new))
        found = decoder.logits(decoder.read(new, positions, 64, memory, every))
