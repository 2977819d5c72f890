"""The built-in pair on the built-in corpus: routed text at both ends of the threshold."""

from __future__ import annotations

import numpy as np
import pytest

from clients.policy import ThresholdPolicy
from fedhlm_app.data.items import load_items
from fedhlm_app.data.prompts import prompts
from fedhlm_app.models.load import load_pair
from tests.routed import build, new_part, own_text

END = 2


@pytest.mark.parametrize(("threshold", "which"), [(-1.0, "llm"), (1.0, "slm")])
def test_routed_text_is_the_models_own(threshold, which):
    pair = load_pair()
    items = load_items("builtin")
    made = prompts(items, pair.tokenizer, np.arange(0, 430, 30), "generate", 16)
    texts = [prompt.tokens for prompt in made]
    setup = build(
        pair.slm,
        pair.llm,
        ThresholdPolicy(threshold),
        context=96,
        end_tokens=frozenset([END]),
    )
    routed, records, _ = setup.generate(texts, 40)
    for row, text in enumerate(texts):
        assert new_part(routed, row) == own_text(getattr(pair, which), text, 40, eos_token_id=END)
    assert records.tokens > 500
