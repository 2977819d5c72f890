"""Questions about a device's texts as messages to the LLM server, and what it holds of the texts.

Only what the server lacks goes up. When it has dropped a text it says so, and the prefix is sent
again without whoever asked noticing.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from weakref import WeakKeyDictionary

import numpy as np

from clients.records import TextBatch, Traffic
from clients.resolvers.link import Link
from hlm.arrays import IntArray
from hlm.sampling import Sampling
from hlm.transport import LinkDown
from hlm.verification import VERIFIERS
from hlm.wire import (
    IDENTITY_BYTES,
    Limits,
    PrefixDigest,
    Reply,
    Request,
    Rows,
    Status,
    decode_reply,
    encode_request,
    entries,
    joint_digest,
)

LIMITS = Limits()
"""What a server reads unless it is told otherwise."""

ROW_BYTES = 64
"""More than a row's numbers take, but for its tokens and its claim."""


@dataclass(frozen=True)
class UplinkConfig:
    """What the requests of a device have in common.

    Attributes
    ----------
    client : int
        Number of the device.
    vocab : int
        Size of the shared vocabulary.
    sampling : Sampling
        The distribution the LLM draws from.
    seed : int
        Keys the server's draws; > 0 where decoding is sampled, so that a run repeats.
    feedback : bool
        Ask for a byte about each kept token the server reads (free feedback).
    draft_feedback : bool
        Ask for a byte about each escalated draft; always so with `feedback`.
    identity : bytes
        16 random bytes of this device process, drawn anew unless given. They keep its texts apart
        from those of other devices and runs, whatever their numbers, and influence no token.
    """

    client: int
    vocab: int
    sampling: Sampling
    seed: int = 0
    feedback: bool = True
    draft_feedback: bool = True
    identity: bytes = field(default_factory=lambda: secrets.token_bytes(IDENTITY_BYTES), repr=False)


Carry = Callable[[Request, Traffic], Reply]
"""Sends a message and returns its reply; raises LinkDown when none comes."""


@dataclass
class _Held:
    """What the server is believed to hold of a batch of texts."""

    tokens: IntArray  # int64 [texts], how many of each
    digests: dict[int, PrefixDigest] = field(default_factory=dict)  # by text


class Sender:
    """Asks the LLM server about texts.

    Parameters
    ----------
    link : Link
        To the server.
    config : UplinkConfig
        See there.
    """

    def __init__(self, link: Link, config: UplinkConfig) -> None:
        self.link = link
        self.config = config
        self._held: WeakKeyDictionary[TextBatch, _Held] = WeakKeyDictionary()

    def held(self, texts: TextBatch) -> IntArray:
        """Tokens that the server is believed to hold of each text, int64 [texts]; to be kept up."""
        return self._of(texts).tokens

    def lacking(
        self, texts: TextBatch, owners: IntArray, ends: IntArray
    ) -> tuple[IntArray, IntArray, IntArray]:
        """What the server lacks to read texts up to some places; it counts as held from now on.

        Parameters
        ----------
        texts : TextBatch
            All of the device.
        owners, ends : numpy.ndarray
            int64 [n], texts and places; those of one text together, and increasing.

        Returns
        -------
        starts, lengths, tokens : numpy.ndarray
            int64 [n], [n] and [sum of lengths].
        """
        held = self.held(texts)
        again = np.append(False, owners[1:] == owners[:-1])
        starts = np.where(again, np.roll(ends, 1), np.minimum(held[owners], ends))
        lengths = ends - starts
        held[owners] = ends
        return starts, lengths, texts.tokens[np.repeat(owners, lengths), entries(starts, lengths)]

    def ask(
        self,
        texts: TextBatch,
        owners: IntArray,
        rows: Rows,
        verifier: str,
        traffic: Traffic,
        *,
        feedback: bool,
        carry: Carry | None = None,
    ) -> Reply:
        """Ask about rows, in as many messages as it takes.

        Parameters
        ----------
        texts : TextBatch
            All of the device.
        owners : numpy.ndarray
            int64, the text of each row.
        rows : Rows
            The questions.
        verifier : str
            Decides the drafts.
        traffic : Traffic
            Counters, added to.
        feedback : bool
            Ask for a byte about each token and draft.
        carry : callable, optional
            Sends each message; by default in an exchange of its own.

        Raises
        ------
        LinkDown
            When no answer comes.
        """
        ask = partial(self._ask, texts, verifier, feedback, traffic, carry or self._exchange)
        try:
            reply = ask(owners, rows)
            lost = reply.statuses == Status.PREFIX_NEEDED
            # A block goes up again as a whole.
            lead = np.maximum.accumulate(np.where(rows.block, 0, np.arange(len(rows))))
            again = lost[lead]
            if again.any():
                whole = whole_texts(texts, owners[again], rows.select(again))
                found = ask(owners[again], whole)
                order = np.argsort(again, kind="stable").argsort()
                reply = Reply.joined([reply.select(~again), found]).select(order)
        except LinkDown:
            # Whether the server took the tokens in is unknown: the next request is a whole one.
            self.held(texts)[owners] = 0
            raise
        return reply

    def _of(self, texts: TextBatch) -> _Held:
        if texts not in self._held:
            self._held[texts] = _Held(np.zeros(len(texts.lengths), np.int64))
        return self._held[texts]

    def _ask(
        self,
        texts: TextBatch,
        verifier: str,
        feedback: bool,
        traffic: Traffic,
        carry: Carry,
        owners: IntArray,
        rows: Rows,
    ) -> Reply:
        config, sampling = self.config, self.config.sampling
        replies = []
        for part in messages(rows, config.vocab):
            asked = rows.select(part)
            request = Request(
                verifier=verifier,
                vocab=config.vocab,
                rows=asked,
                seed=config.seed,
                client=config.client,
                feedback=feedback,
                decoding=sampling.decoding,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                bits=VERIFIERS[verifier].bits,
                identity=config.identity if (asked.starts == 0).any() else b"",
                digest=self._digest(texts, owners[part], asked),
            )
            replies.append(carry(request, traffic))
        return Reply.joined(replies)

    def _exchange(self, request: Request, traffic: Traffic) -> Reply:
        payload = encode_request(request)
        return self.link.exchange(payload, lambda answer: decode_reply(answer, request), traffic)

    def _digest(self, texts: TextBatch, owners: IntArray, rows: Rows) -> int:
        """What a message says of the tokens that its rows build on; 0 if they build on none."""
        digests, identity = self._of(texts).digests, self.config.identity
        builds, prefixes = rows.builds, []
        for owner, session, start in zip(
            owners[builds].tolist(),
            rows.sessions[builds].tolist(),
            rows.starts[builds].tolist(),
            strict=True,
        ):
            state = digests.setdefault(owner, PrefixDigest(identity))
            prefixes.append((session, start, state.at(texts.tokens[owner], start)))
        return joint_digest(identity, prefixes) if prefixes else 0


def messages(rows: Rows, vocab: int, limits: Limits = LIMITS) -> Iterator[slice]:
    """Which rows go into one message: as many as a server reads, blocks in one piece.

    Parameters
    ----------
    rows : Rows
        In the order they are asked in.
    vocab : int
        Size of the vocabulary.
    limits : Limits
        The server's.
    """
    most = np.array([limits.max_rows, limits.max_tokens, limits.max_weights, limits.max_bytes])
    # An id or a weight has 4 bytes at most; a support is a set of ids besides its weights.
    claim_bytes = np.where(rows.counts == vocab, 2, 8) * rows.counts
    sizes = np.stack(
        [np.ones(len(rows)), rows.lengths, rows.counts, ROW_BYTES + 4 * rows.lengths + claim_bytes]
    )
    totals = np.cumsum(np.pad(sizes, ((0, 0), (1, 0))), axis=1)
    begin = 0
    for lead, after in pairwise([*np.flatnonzero(~rows.block).tolist(), len(rows)]):
        if lead > begin and (totals[:, after] - totals[:, begin] > most).any():
            yield slice(begin, lead)
            begin = lead
    yield slice(begin, len(rows))


def whole_texts(texts: TextBatch, owners: IntArray, rows: Rows) -> Rows:
    """The same questions, with the whole prefix in the first of each text (int64 `owners`).

    Feedback is wanted for what it was before.
    """
    first = rows.first
    starts = np.where(first, 0, rows.starts)
    lengths = rows.ends - starts
    old = np.repeat(~first, lengths)
    tokens = np.empty(old.size, np.int64)
    tokens[old] = rows.tokens[np.repeat(~first, rows.lengths)]
    places = entries(starts[first], lengths[first])
    tokens[~old] = texts.tokens[np.repeat(owners[first], lengths[first]), places]
    quiet = rows.quiet + np.where(first, rows.starts, 0)
    return replace(rows, starts=starts, lengths=lengths, tokens=tokens, quiet=quiet)
