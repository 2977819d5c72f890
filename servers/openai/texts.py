"""A text that a server is asked about, and what the server writes ahead of it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

from hlm.arrays import IntArray
from servers.kept_texts import KeptText
from servers.openai.answers import Told


@dataclass
class Ahead:
    """What the server has said, or is saying, of a text's next tokens."""

    base: int
    """Tokens of the text when it was asked."""
    source: Iterator[Told]
    told: list[int] = field(default_factory=list)

    def next(self, tokens: IntArray) -> Told | None:
        """The next token, if the text went on as told so far; None where nothing is known."""
        if tokens[self.base :].tolist() != self.told:
            return None
        found = next(self.source, None)
        if found is not None:
            self.told.append(found.token)
        return found


@dataclass
class Text(KeptText):
    """The tokens of a session.

    Attributes
    ----------
    ahead : Ahead or None
        Where the server is ahead of it.
    """

    ahead: Ahead | None = None

    def take(self, start: int, tokens: IntArray) -> None:
        """Go on with `tokens` from `start` on; what was written ahead of it is stopped."""
        if self.ahead is not None and start < self.ahead.base + len(self.ahead.told):
            self.stop()
        super().take(start, tokens)

    def stop(self) -> None:
        """Read no more of what is written ahead."""
        if self.ahead is not None and isinstance(self.ahead.source, Generator):
            self.ahead.source.close()
        self.ahead = None
