"""What the service asks of whatever runs the large model: the engine of this project, or another.

A backend holds texts as tokens and goes back to any place in them; what it says of a next token
depends on what it `offers`. Verifiers say what they need (`hlm.verifiers.Need`), and a request
that needs more is refused by name. Where backends are registered: `fedhlm_app.hosting.backends`.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from hlm.arrays import IntArray
from hlm.verifiers import VERIFIERS, Need, served_verifiers
from hlm.wire import Request, WireError

Owner = tuple[Hashable, ...]
"""Whose a session is, the widest first: a tenant, if there is one, then its device."""


@dataclass(frozen=True)
class Feed:
    """What one session adds, and where its next-token predictions are wanted.

    Attributes
    ----------
    session : Hashable
        Whose text it is.
    start : int
        Position of ``tokens[0]``; anything the session held from there on is dropped.
    tokens : numpy.ndarray
        int64 [n], n >= 0.
    wanted : numpy.ndarray
        int64 [m] increasing positions ``p`` in ``1 .. start + n``: the distribution of token ``p``
        given tokens ``0 .. p - 1``. May be empty: then no forward pass is spent.
    asked : numpy.ndarray
        int64 [k, 2], wanted positions and tokens whose log-probabilities there will be read;
        empty for a backend that offers distributions.
    follow : int
        How many tokens after the one behind it a stream may ask for, one by one.
    owner : Owner
        Whose session it is, if it is new: who has half of all makes room for its own.
    """

    session: Hashable
    start: int
    tokens: IntArray
    wanted: IntArray
    asked: IntArray = field(default_factory=lambda: np.empty((0, 2), np.int64))
    follow: int = 0
    owner: Owner = ()


class Unreadable(Exception):
    """Why a backend cannot be asked about one text, or what it said of it is unusable."""


@dataclass
class BackendStats:
    """Counters since the backend started.

    Attributes
    ----------
    passes, tokens, padded_tokens : int
        Forward passes, tokens fed, and tokens fed including padding.
    evictions : int
        Sessions that lost their place to another.
    seconds : float
        Wall time inside forward passes, in s.
    """

    passes: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    evictions: int = 0
    seconds: float = 0.0


def next_to_go(
    owners: Mapping[Hashable, Owner],
    owner: Owner,
    most: int,
    kept: Collection[Hashable],
) -> Hashable:
    """Which session makes room for a new one: whoever has its half gives up one of its own.

    Parameters
    ----------
    owners : mapping
        Owners of sessions, the one not used for longest first.
    owner : Owner
        Of the new session (`Feed.owner`).
    most : int
        Most sessions, all of which are there.
    kept : collection of Hashable
        Sessions that stay; not all.
    """
    spare = [session for session in owners if session not in kept]
    # The narrowest first: a device that has half of all takes its own place, not its tenant's.
    for depth in range(len(owner), 0, -1):
        own = [session for session, whose in owners.items() if whose[:depth] == owner[:depth]]
        if len(own) >= max(1, most // 2):
            return next((session for session in own if session not in kept), spare[0])
    return spare[0]


class Backend(Protocol):
    """Next-token prediction for many sessions with one large model."""

    offers: Need
    """The most it says of a next token."""
    vocab: int
    """Tokens of the model's vocabulary."""
    max_sessions: int
    """Most sessions held at a time; the one not used for longest makes room (`next_to_go`)."""
    max_context: int
    """Most tokens of a session."""
    reading: str
    """How texts are read, for people."""
    slow: bool
    """Whether a faster way of reading is known, and not right for this model."""
    stats: BackendStats

    def held(self, session: Hashable) -> int:
        """Tokens held for a session (0 when unknown or evicted)."""
        ...

    def computed(self, session: Hashable) -> int:
        """Tokens of a session that need not be read again; 0 when nothing is kept of reading."""
        ...

    def tokens(self, session: Hashable) -> IntArray:
        """The tokens of a held session, int64 [held]; not to be changed."""
        ...

    def append(self, session: Hashable, token: int) -> None:
        """Add a decided token to a held session; it is read with the next feed."""
        ...

    def score(self, feeds: Sequence[Feed]) -> Sequence[torch.Tensor | Unreadable | None]:
        """Take in new tokens and predict at the wanted positions.

        Parameters
        ----------
        feeds : sequence of Feed
            One per session, sessions distinct.

        Returns
        -------
        sequence of torch.Tensor, Unreadable or None
            float32 [m, vocab] logits for each feed. Of a backend that does not offer whole
            distributions only the largest of a row (lowest id on ties), and the log-probabilities
            of the asked tokens, mean anything. None where the session lost its place to others of
            the same call: its tokens are then needed from the start. `Unreadable` where nothing
            can be said of this text, whoever asks again.

        Raises
        ------
        LinkDown
            When a model that runs elsewhere does not answer.
        """
        ...


def check_served(request: Request, backend: Backend) -> None:
    """Refuse a request that needs more than the backend offers.

    Raises
    ------
    WireError
        Naming the verifier and those that are served.
    """
    needs = VERIFIERS[request.verifier].needs
    if request.decoding == "sampled":
        needs = Need.PROBS
    if needs > backend.offers:
        allowed = ", ".join(served_verifiers(backend.offers))
        raise WireError(
            f"verifier={request.verifier!r}, decoding={request.decoding!r}: this server's model "
            f"tells its most likely tokens only; it serves {allowed} in greedy decoding"
        )
