"""Token ids and the text that stands for them, where only text is shared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

from transformers import PreTrainedTokenizerBase

_BROKEN = "\ufffd"
"""What stands for bytes that are no whole character."""


class Words:
    """A tokenizer, asked whether text and ids stand for each other.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        Of the model.

    Attributes
    ----------
    size : int
        Tokens of the vocabulary.
    start, end : int or None
        The tokens that begin and end a text, where there are such.
    special : frozenset of int
        Tokens that text leaves out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.size = len(tokenizer)
        self.start: int | None = tokenizer.bos_token_id
        self.end: int | None = tokenizer.eos_token_id
        added = tokenizer.added_tokens_decoder.items()
        marked = (number for number, token in added if token.special)
        self.special = frozenset([*tokenizer.all_special_ids, *marked])

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without tokens that the tokenizer would put around it."""
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens included."""
        return str(
            self._tokenizer.decode(
                list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def text_of(self, ids: Sequence[int]) -> str | None:
        """The text that is read as exactly these ids; None where there is none."""
        text = self.decode(ids)
        return text if self.encode(text) == list(ids) else None

    def said(self, ids: Sequence[int]) -> str | None:
        """The text of ids behind the special tokens they begin with; None if others follow."""
        rest = ids[self._lead(ids) :]
        return None if self.special.intersection(rest) else self.decode(rest)

    def extended(self, ids: Sequence[int], text: str) -> list[int] | None:
        """These ids and more that are a text together; None where no such ones were found.

        Parameters
        ----------
        ids : sequence of int
            Stay what they are, although the tokenizer may read the text otherwise.
        text : str
            Begins with theirs.
        """
        return next(
            (one for one in self._extensions(list(ids), text) if self.said(one) == text), None
        )

    def _extensions(self, ids: list[int], text: str) -> Iterator[list[int]]:
        whole = [*ids[: self._lead(ids)], *self.encode(text)]
        if whole[: len(ids)] == ids:
            yield whole
        before = self.said(ids)
        if before is None or not text.startswith(before):
            return
        rest = text.removeprefix(before)
        yield ids + self.encode(rest)
        # Some tokenizers put a space before whatever they read; here it comes before a line end.
        line, after = self.encode("\n"), self.encode("\n" + rest)
        if after[: len(line)] == line:
            yield ids + after[len(line) :]

    def _lead(self, ids: Sequence[int]) -> int:
        return next((n for n, token in enumerate(ids) if token not in self.special), len(ids))

    def piece(self, token: int) -> str | None:
        """What a token adds to a text; None where it is no whole characters."""
        # Alone, some tokenizers drop a leading space.
        text = self.decode([self._anchor, token])[len(self.decode([self._anchor])) :]
        return None if _BROKEN in text else text

    def token_of(self, piece: str) -> int | None:
        """The only token that adds just this to a text; None where there is none, or several."""
        return self._tokens.get(piece)

    def says(self, token: int, text: str) -> bool:
        """Whether a server may have written a token as this; it may leave out special ones."""
        if not text or text.strip(_BROKEN) != text:
            return not text and token in self.special
        piece = self.piece(token)
        return piece is not None and piece.strip() == text.strip()

    @cached_property
    def _anchor(self) -> int:
        return self.encode("a")[0]

    @cached_property
    def _tokens(self) -> dict[str, int | None]:
        found: dict[str, int | None] = {}
        for token in range(self.size):
            piece = self.piece(token)
            if piece:
                found[piece] = None if piece in found else token
        return found


def whole(text: str) -> bool:
    """Whether a text has characters, and each of them whole."""
    return bool(text) and _BROKEN not in text


def ends_whole(text: str) -> bool:
    """Whether a text has characters, and the last of them whole."""
    return bool(text) and not text.endswith(_BROKEN)
