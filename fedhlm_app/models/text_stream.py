"""Text from tokens as they come: a token may be part of a character, or need others before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CUT = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer writes for bytes that are no character, or not yet."""


class TextStream:
    """Says what each further token adds to a text.

    The pieces put together are the text. A token that ends inside a character adds nothing; the one
    that completes it adds the character. Each is decoded behind the tokens before it, since some
    tokenizers write a word's space only there, but never behind all of them.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        Of the tokens.
    before : sequence of int
        Tokens that the text follows, whole characters of them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, before: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._window = list(before)
        self._told = len(self._window)

    def add(self, token: int, *, last: bool = False) -> str:
        """What a token adds; the `last` one also what is still held back."""
        self._window.append(token)
        before, now = self._decode(self._window[: self._told]), self._decode(self._window)
        if now.endswith(_CUT) and not last:
            return ""
        # What is told now is all that the next tokens need before them.
        self._window = self._window[self._told :]
        self._told = len(self._window)
        return now[len(before) :]

    def _decode(self, tokens: Sequence[int]) -> str:
        decoded = self._tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(decoded)
