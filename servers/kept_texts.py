"""Texts that a backend keeps as tokens, where whoever reads them keeps no session of its own."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from hlm.arrays import IntArray
from servers.backend import BackendStats, Feed, Owner, next_to_go


@dataclass
class KeptText:
    """The tokens of a session.

    Attributes
    ----------
    owner : Owner
        Whose it is (`servers.backend.Feed`).
    tokens : numpy.ndarray
        int64.
    asked : int
        How many of them were read to say what follows.
    """

    owner: Owner = ()
    tokens: IntArray = field(default_factory=lambda: np.empty(0, np.int64))
    asked: int = 0

    def take(self, start: int, tokens: IntArray) -> None:
        """Go on with `tokens` from `start` on."""
        self.tokens = np.concatenate([self.tokens[:start], tokens])
        self.asked = min(self.asked, start)

    def stop(self) -> None:
        """Read no more of what is written ahead of it, if anything is."""


Text = TypeVar("Text", bound=KeptText)


class KeptTexts(Generic[Text]):
    """The part of a `servers.backend.Backend` that holds texts.

    Parameters
    ----------
    make : callable
        A new text, of its owner.
    vocab : int
        Tokens of the vocabulary.
    max_sessions, max_context : int
        Texts kept, and the longest of them in tokens; both >= 1.
    """

    def __init__(
        self,
        make: Callable[[Owner], Text],
        vocab: int,
        max_sessions: int,
        max_context: int,
    ) -> None:
        self.vocab, self.max_sessions, self.max_context = vocab, max_sessions, max_context
        self.stats = BackendStats()
        self._make = make
        self._texts: OrderedDict[Hashable, Text] = OrderedDict()

    def held(self, session: Hashable) -> int:
        """Tokens held for a session (0 when unknown or evicted)."""
        known = self._texts.get(session)
        return 0 if known is None else len(known.tokens)

    def computed(self, session: Hashable) -> int:
        """Tokens of a session that were read to say what follows."""
        known = self._texts.get(session)
        return 0 if known is None else known.asked

    def tokens(self, session: Hashable) -> IntArray:
        """The tokens of a held session, int64 [held]; not to be changed."""
        return self._texts[session].tokens

    def append(self, session: Hashable, token: int) -> None:
        """Add a decided token to a held session."""
        known = self._texts[session]
        if len(known.tokens) < self.max_context:
            known.tokens = np.append(known.tokens, np.int64(token))

    def taken(self, feed: Feed) -> Text | None:
        """The text of a feed, with its tokens; None where it builds on what is not held."""
        if feed.start > self.held(feed.session):
            return None
        if feed.session not in self._texts and len(self._texts) >= self.max_sessions:
            owners = {key: text.owner for key, text in self._texts.items()}
            self._texts.pop(next_to_go(owners, feed.owner, self.max_sessions, ())).stop()
            self.stats.evictions += 1
        if feed.session not in self._texts:
            self._texts[feed.session] = self._make(feed.owner)
        text = self._texts[feed.session]
        text.take(feed.start, feed.tokens)
        self._texts.move_to_end(feed.session)
        return text
