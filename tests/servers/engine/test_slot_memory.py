from __future__ import annotations

import numpy as np
import pytest
import torch

from hlm.reading.fused import FusedDecoder
from servers.engine import slot_memory
from servers.engine.packed_linear import packed_product
from servers.engine.slot_memory import SlotMemory
from servers.engine.slots import Placement
from tests.models import VOCAB, random_model


def read(decoder, memory, new):
    """Feed {slot: (first, tokens)}; logits after every token, slot after slot."""
    slots = sorted(new)
    counts = [len(new[slot][1]) for slot in slots]
    first = np.array([new[slot][0] for slot in slots])
    longest, length = max(counts), int(first.max()) + max(counts)
    rows = np.repeat(np.arange(len(slots)), counts)
    offsets = np.concatenate([np.arange(count) for count in counts])
    columns = torch.from_numpy(first[rows] + offsets)
    visible = np.arange(length) <= (first[:, None] + np.arange(longest))[:, None, :, None]
    memory.place(
        Placement(
            torch.tensor(slots), torch.from_numpy(rows), torch.from_numpy(offsets), columns,
            longest, length,
        ),
        torch.from_numpy(visible),
    )  # fmt: skip
    tokens = torch.cat([new[slot][1] for slot in slots])
    hidden = decoder.read(tokens, columns, length, memory, torch.arange(len(tokens)))
    return decoder.logits(hidden)


@pytest.mark.parametrize("most_scores", [1 << 22, 0], ids=["few", "many"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("linear", [None, packed_product], ids=["plain", "packed"])
@torch.inference_mode()
def test_sessions_are_read_as_whole_texts(architecture, linear, most_scores, monkeypatch):
    monkeypatch.setattr(slot_memory, "MOST_SCORES", most_scores)
    model = random_model(architecture)
    decoder = FusedDecoder(model, linear)
    memory, rng = SlotMemory(decoder.shape, 3, 64), np.random.default_rng(0)
    texts = {slot: torch.from_numpy(rng.integers(1, VOCAB, 30)) for slot in range(5)}
    expected = {slot: model(text[None]).logits[0] for slot, text in texts.items()}

    def check(parts):
        found = read(decoder, memory, {s: (a, texts[s][a:b]) for s, (a, b) in parts.items()})
        wanted = torch.cat([expected[s][a:b] for s, (a, b) in sorted(parts.items())])
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)

    check({0: (0, 4), 1: (0, 9), 2: (0, 1)})
    check({1: (9, 10), 2: (1, 2)})
    check({0: (4, 8), 2: (2, 3)})  # slots that are not adjacent
    memory.grow(5)
    check({4: (0, 3), 0: (8, 9), 1: (10, 20)})
    # Tokens taken back are written over.
    other = {0: (5, (texts[0][5:9] + 1) % VOCAB)}
    read(decoder, memory, other)
    check({0: (5, 30), 3: (0, 1)})
