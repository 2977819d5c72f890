"""Several pending drafts of a text in one message to the LLM."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from clients.records import TextBatch, TokenFeedback, Traffic
from clients.resolvers.chain import Escalation
from clients.resolvers.messages import UplinkConfig
from clients.resolvers.uplink import LanguageModelUplink, feedback_of
from hlm.arrays import BoolArray, IntArray
from hlm.randomness import DrawKeys
from hlm.transport import LinkDown, Transport
from hlm.verification import VERIFIERS, Draft, Verifier
from hlm.wire import NO_TOKEN, entries, with_blocks


@dataclass(frozen=True)
class Ahead:
    """What was drafted of several texts; a row's drafts go on from each other.

    Attributes
    ----------
    rows, steps, positions : numpy.ndarray
        int64 [n]: the text, the step of its first draft in the records, and its place.
    counts : numpy.ndarray
        int64 [n], drafts of each row, 1 .. depth.
    more : numpy.ndarray
        bool [n]: the token after the block is wanted if all drafts stand.
    drafts : list of Draft
        [depth], each of n rows; what is past a row's count means nothing.
    keys : DrawKeys
        Of the first drafts, n rows.
    """

    rows: IntArray
    steps: IntArray
    positions: IntArray
    counts: IntArray
    more: BoolArray
    drafts: list[Draft]
    keys: DrawKeys


@dataclass(frozen=True)
class Verified:
    """What became of drafted blocks.

    Attributes
    ----------
    served : numpy.ndarray
        bool [n]: an answer came.
    accepted : numpy.ndarray
        int64 [n], drafts that stand.
    tokens : numpy.ndarray
        int64 [n], the token that follows them; -1 if none came.
    feedback : list of TokenFeedback
        What the LLM said of the drafts and of tokens before them.
    traffic : Traffic
        What crossed the link.
    """

    served: BoolArray
    accepted: IntArray
    tokens: IntArray
    feedback: list[TokenFeedback] = field(default_factory=list)
    traffic: Traffic = field(default_factory=Traffic)


class BlockUplink(LanguageModelUplink):
    """The way to the LLM for blocks of drafts.

    Parameters
    ----------
    transport : Transport
        Carries bytes.
    verifier : Verifier
        With a shared draw; draws the drafts and says how they are decided.
    config : UplinkConfig
        As for `LanguageModelUplink`.

    Raises
    ------
    ValueError
        For a verifier without one, which claims more about a draft than its id.
    """

    def __init__(self, transport: Transport, verifier: Verifier, config: UplinkConfig) -> None:
        if not VERIFIERS[verifier.name].shared_draw:
            allowed = ", ".join(name for name, one in VERIFIERS.items() if one.shared_draw)
            raise ValueError(f"verifier = {verifier.name!r}: for blocks one of {allowed} is needed")
        super().__init__(transport, verifier, config)

    def verify(self, texts: TextBatch, ahead: Ahead) -> Verified:
        """Have all blocks decided in one exchange.

        Parameters
        ----------
        texts : TextBatch
            Hold the tokens before the blocks.
        ahead : Ahead
            The drafts.
        """
        count = len(ahead.rows)
        unserved = Verified(
            np.zeros(count, np.bool_), np.zeros(count, np.int64), np.full(count, -1, np.int64)
        )
        if self.link.asleep:
            return unserved
        escalation = Escalation(
            texts=texts,
            rows=ahead.rows,
            steps=ahead.steps,
            positions=ahead.positions,
            draft=ahead.drafts[0],
            keys=ahead.keys,
            hidden=None,
            uncertainty=np.full(count, np.nan),
            audited=np.zeros(count, np.bool_),
            spans=np.zeros(count, np.int64),
        )
        leading = self.questions(escalation)
        sizes = ahead.counts + ahead.more
        owner = np.repeat(np.arange(count), sizes)
        depth = entries(np.zeros_like(sizes), sizes)
        table = np.stack(
            [*(np.asarray(draft.tokens) for draft in ahead.drafts), np.full(count, -1)]
        )
        drafts = np.where(depth < ahead.counts[owner], table[depth, owner], NO_TOKEN)
        rows = with_blocks(leading, depth == 0, drafts)
        try:
            reply = self.ask(texts, ahead.rows[owner], rows, unserved.traffic)
        except LinkDown:
            return unserved
        last = np.full(count, -1)
        answered = np.flatnonzero(reply.served)
        last[owner[answered]] = answered  # of each block, as later ones overwrite earlier ones
        served = last >= 0
        accepted = np.bincount(owner[reply.accepted], minlength=count)
        tokens = np.where(served & ~reply.accepted[last], reply.tokens[last], NO_TOKEN)
        known = ahead.positions + accepted + (tokens >= 0)
        self.sender.held(texts)[ahead.rows[served]] = known[served]
        feedback = feedback_of(ahead.rows[owner], ahead.steps[owner] + depth, reply)
        return Verified(served, accepted, tokens, [feedback], unserved.traffic)
