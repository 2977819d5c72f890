"""Stop sequences: where a text ends, and which tokens may be shown before that is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fedhlm_app.client.prompted import Token


class StopSequences:
    """Holds back tokens whose text may begin a stop sequence.

    Parameters
    ----------
    sequences : sequence of str
        None of them empty; the text ends before the first that comes.
    """

    def __init__(self, sequences: Sequence[str]) -> None:
        self._sequences = sequences
        self._held: list[Token] = []

    def add(self, token: Token) -> tuple[list[Token], bool]:
        """Take a token in; the tokens that may be shown now, and whether the text ends.

        The last token is cut before the stop sequence. Tokens behind the cut have no text left.
        """
        self._held.append(token)
        text = "".join(one.text for one in self._held)
        found = [at for one in self._sequences if (at := text.find(one)) >= 0]
        if found:
            return self._cut(min(found)), True
        sure = len(text) - max((_begun(text, one) for one in self._sequences), default=0)
        shown, length = 0, 0
        for one in self._held:
            length += len(one.text)
            if length > sure:
                break
            shown += 1
        tokens, self._held = self._held[:shown], self._held[shown:]
        return tokens, False

    def rest(self) -> list[Token]:
        """What is still held back of a text that has ended otherwise."""
        tokens, self._held = self._held, []
        return tokens

    def _cut(self, length: int) -> list[Token]:
        tokens = []
        for one in self.rest():
            tokens.append(replace(one, text=one.text[:length]))
            length -= len(tokens[-1].text)
        return tokens


def _begun(text: str, sequence: str) -> int:
    """Characters at the end of a text with which a sequence begins."""
    most = min(len(text), len(sequence) - 1)
    return next((n for n in range(most, 0, -1) if text.endswith(sequence[:n])), 0)
