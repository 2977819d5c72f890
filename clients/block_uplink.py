"""Several pending drafts of a text in one message to the LLM."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from clients.records import TextBatch, TokenFeedback, Traffic
from clients.resolvers.chain import Escalation
from clients.resolvers.uplink import LanguageModelUplink, UplinkConfig, feedback_of
from hlm.arrays import BoolArray, IntArray
from hlm.randomness import DrawKeys
from hlm.transport import LinkDown, Transport
from hlm.verification import VERIFIERS, Draft, Verifier
from hlm.wire import Row, RowReply, Status, following_row


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
        self.drafter = verifier

    def verify(self, texts: TextBatch, ahead: Ahead) -> Verified:
        """Have all blocks decided in one exchange.

        Parameters
        ----------
        texts : TextBatch
            Hold the tokens before the blocks; `held` is moved to what the server has afterwards.
        ahead : Ahead
            The drafts.
        """
        count = len(ahead.rows)
        unserved = Verified(
            np.zeros(count, np.bool_), np.zeros(count, np.int64), np.full(count, -1, np.int64)
        )
        traffic, feedback = unserved.traffic, unserved.feedback
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
        )
        try:
            blocks = [self._block(escalation, ahead, i) for i in range(count)]
            owners = ahead.rows.tolist()
            answers = self._ask_blocks(texts, blocks, owners, traffic)
            again = [i for i, answer in enumerate(answers) if _lost(answer)]
            if again:
                whole = [_with_prefix(blocks[i], texts.tokens[ahead.rows[i]]) for i in again]
                whose = [owners[i] for i in again]
                for i, answer in zip(
                    again, self._ask_blocks(texts, whole, whose, traffic), strict=True
                ):
                    answers[i] = answer
        except LinkDown:
            # Whether the server took the tokens in is unknown: the next request is a whole one.
            texts.held[ahead.rows] = 0
            return unserved
        outcomes = [
            self._settle(escalation, ahead, i, answer, feedback) for i, answer in enumerate(answers)
        ]
        served, accepted, tokens = (np.array(column) for column in zip(*outcomes, strict=True))
        return Verified(served, accepted, tokens, feedback, traffic)

    def _block(self, escalation: Escalation, ahead: Ahead, i: int) -> list[Row]:
        rows = [self._row(escalation, i, ahead.drafts[0].claim)]
        for draft in ahead.drafts[1 : ahead.counts[i]]:
            rows.append(following_row(rows[-1], int(draft.tokens[i])))
        if ahead.more[i]:
            rows.append(following_row(rows[-1]))
        return rows

    def _ask_blocks(
        self, texts: TextBatch, blocks: list[list[Row]], owners: list[int], traffic: Traffic
    ) -> list[list[RowReply]]:
        rows = [row for block in blocks for row in block]
        whose = [owner for block, owner in zip(blocks, owners, strict=True) for _ in block]
        feedback = self.config.feedback or self.config.draft_feedback
        replies = iter(self._exchange(texts, self.verifier.name, feedback, traffic, rows, whose))
        return [[next(replies) for _ in block] for block in blocks]

    def _settle(
        self,
        escalation: Escalation,
        ahead: Ahead,
        i: int,
        answer: list[RowReply],
        feedback: list[TokenFeedback],
    ) -> tuple[bool, int, int]:
        """(served, drafts that stand, token after them) of one block."""
        served = [reply for reply in answer if reply.status == Status.OK]
        if not served:
            return False, 0, -1
        lead = np.array([i])
        for depth, reply in enumerate(served[: int(ahead.counts[i])]):
            later = replace(escalation, steps=escalation.steps + depth)
            feedback.append(feedback_of(later, lead, [reply]))
        accepted = sum(reply.accepted for reply in served)
        token = -1 if served[-1].accepted else served[-1].token
        known = accepted + int(token >= 0)
        escalation.texts.held[ahead.rows[i]] = ahead.positions[i] + known
        return True, accepted, token


def _lost(answer: list[RowReply]) -> bool:
    return answer[0].status == Status.PREFIX_NEEDED


def _with_prefix(block: list[Row], text: IntArray) -> list[Row]:
    """The same block with all tokens before it; feedback is wanted for what it was before."""
    lead = block[0]
    end = lead.start + len(lead.tokens)
    whole = replace(lead, start=0, tokens=text[:end], quiet=lead.start + lead.quiet)
    return [whole, *block[1:]]
