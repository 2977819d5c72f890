"""A text that a server is asked about, and what the server writes ahead of it."""

from __future__ import annotations

from collections.abc import Generator, Hashable, Iterator
from dataclasses import dataclass, field

import numpy as np

from hlm.arrays import IntArray
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
class Text:
    """The tokens of a session.

    Attributes
    ----------
    owner : Hashable
        Whose it is.
    tokens : numpy.ndarray
        int64.
    asked : int
        How many of them the server was asked about, and so has in its cache.
    ahead : Ahead or None
        Where the server is ahead of it.
    """

    owner: Hashable = None
    tokens: IntArray = field(default_factory=lambda: np.empty(0, np.int64))
    asked: int = 0
    ahead: Ahead | None = None

    def take(self, start: int, tokens: IntArray) -> None:
        """Go on with `tokens` from `start` on; what was written ahead of it is stopped."""
        if self.ahead is not None and start < self.ahead.base + len(self.ahead.told):
            self.stop()
        self.tokens = np.concatenate([self.tokens[:start], tokens])
        self.asked = min(self.asked, start)

    def stop(self) -> None:
        """Read no more of what is written ahead."""
        if self.ahead is not None and isinstance(self.ahead.source, Generator):
            self.ahead.source.close()
        self.ahead = None
