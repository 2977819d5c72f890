"""What each token adds to a text, put together, is the text."""

from __future__ import annotations

import numpy as np
import pytest

from fedhlm_app.models.text_stream import TextStream
from fedhlm_app.models.vocabulary import load_tokenizer


def pieces(prompt: list[int], tokens: list[int]) -> list[str]:
    stream = TextStream(load_tokenizer(), prompt)
    return [stream.add(one, last=n + 1 == len(tokens)) for n, one in enumerate(tokens)]


@pytest.mark.parametrize("text", [" fell, sharply", " 🙂🙂 naïve 東京", "\n\tdone"])
def test_characters_come_whole(text):
    tokenizer = load_tokenizer()
    tokens = tokenizer.encode(text, add_special_tokens=False)
    found = pieces(tokenizer.encode("Shares", add_special_tokens=False), tokens)
    assert "".join(found) == text
    assert not any("\ufffd" in piece for piece in found)


def test_bytes_that_are_no_character_are_told_in_the_end():
    tokenizer = load_tokenizer()
    broken = tokenizer.encode("🙂", add_special_tokens=False)[:-1]
    found = pieces([], broken)
    assert "".join(found) == tokenizer.decode(broken) == "\ufffd"
    assert found[:-1] == [""] * (len(broken) - 1)


def test_any_tokens_give_the_decoded_text():
    tokenizer = load_tokenizer()
    generator = np.random.default_rng(3)
    for _ in range(30):
        # Single bytes come first in the vocabulary: many are halves of characters.
        tokens = generator.integers(0, generator.choice([270, 4096]), 40).tolist()
        assert "".join(pieces([], tokens)) == tokenizer.decode(tokens, skip_special_tokens=True)
