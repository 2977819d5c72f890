"""Reading in whole passes: what one pass holds is bounded whatever is asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hlm.reading.plain import FullForward, Passage
from tests.models import VOCAB, random_model


def passages(count: int, length: int) -> list[Passage]:
    draws = np.random.default_rng(0)
    texts = draws.integers(0, VOCAB, (count, length))
    return [Passage(key, text, 0, np.arange(1, length + 1)) for key, text in enumerate(texts)]


@pytest.mark.parametrize(("texts", "most"), [(1, 1), (2, 2), (12, 12)])
def test_a_pass_holds_bounded_logits(texts, most):
    """As many texts as the bound has room for go in one pass, and at least one."""
    model = random_model("llama", 1)
    wanted = passages(12, 8)
    yielded = []

    def note(_, __, output):
        yielded.append(output.logits.shape)

    hook = model.register_forward_hook(note)
    try:
        found = FullForward(model, max_logits=texts * 8 * VOCAB).read(wanted)
    finally:
        hook.remove()
    assert {shape[0] for shape in yielded} == {most}
    assert max(shape.numel() for shape in yielded) <= texts * 8 * VOCAB
    for passage, part in zip(wanted, found, strict=True):
        alone = model(input_ids=torch.from_numpy(passage.text)[None]).logits[0]
        torch.testing.assert_close(part.logits, alone.detach(), rtol=1e-4, atol=1e-5)
