"""The way to the LLM: drafts and what the server lacks go up, a verdict and feedback come down.

When no answer comes, the tokens stay with the device's drafts, and for a while the server is not
asked at all.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from clients.records import Stage, TextBatch, TokenFeedback, Traffic
from clients.resolvers.chain import Asked, Escalation, Resolution
from clients.resolvers.link import Link
from clients.resolvers.messages import Carry, Sender, UplinkConfig
from hlm.arrays import IntArray
from hlm.transport import LinkDown, Transport
from hlm.verification import Draft, Verdict, Verifier, shares_draw
from hlm.wire import Reply, Rows


class LanguageModelUplink:
    """Resolver that asks the LLM server.

    Parameters
    ----------
    transport : Transport
        Carries bytes.
    verifier : Verifier
        How escalated tokens are decided.
    config : UplinkConfig
        See there.

    Attributes
    ----------
    link : Link
        Carries the requests.
    sender : Sender
        Writes them, and knows what the server holds.
    """

    needs_hidden = False
    verifies = True

    def __init__(self, transport: Transport, verifier: Verifier, config: UplinkConfig) -> None:
        self.verifier = verifier
        self.link = Link(transport, "llm")
        self.sender = Sender(self.link, config)

    @property
    def config(self) -> UplinkConfig:
        """What the requests have in common."""
        return self.sender.config

    def resolve(self, escalation: Escalation) -> Resolution[None]:
        """Have the rows verified; rows without an answer stay undecided."""
        return self._verified(escalation)

    def _verified(self, escalation: Escalation, carry: Carry | None = None) -> Resolution[None]:
        resolution: Resolution[None] = Resolution.none(len(escalation.rows))
        if self.link.asleep:
            return resolution
        try:
            reply = self.ask(
                escalation.texts,
                escalation.rows,
                self.questions(escalation),
                resolution.traffic,
                carry,
            )
        except LinkDown:
            return resolution
        self._take(escalation, reply, resolution)
        return resolution

    def learn(
        self, escalation: Escalation, final: Resolution[Any], asked: Asked[None] | None
    ) -> Traffic:
        """Nothing to remember: the server keeps the texts."""
        return Traffic()

    def ask(
        self,
        texts: TextBatch,
        owners: IntArray,
        rows: Rows,
        traffic: Traffic,
        carry: Carry | None = None,
    ) -> Reply:
        """Have the drafts of rows decided; `owners` (int64) are their texts."""
        feedback, name = self.config.feedback or self.config.draft_feedback, self.verifier.name
        return self.sender.ask(texts, owners, rows, name, traffic, feedback=feedback, carry=carry)

    def questions(self, escalation: Escalation) -> Rows:
        """The rows of an escalation, with what the server lacks of their texts."""
        texts, owners = escalation.texts, escalation.rows
        starts, lengths, tokens = self.sender.lacking(texts, owners, escalation.positions)
        quiet = lengths
        if self.config.feedback and not texts.given:
            quiet = np.clip(texts.prompt_lengths[owners] - starts, 0, lengths)
        elif not (self.config.feedback or self.config.draft_feedback):
            quiet = np.zeros_like(lengths)  # nothing is told anyway
        counts, weights, support = escalation.draft.claim.entries()
        return Rows(
            texts.sessions[owners],
            starts,
            lengths,
            tokens,
            np.asarray(escalation.draft.tokens),
            quiet,
            counts=counts,
            weights=weights,
            support=support,
        )

    def _take(self, escalation: Escalation, reply: Reply, resolution: Resolution[None]) -> None:
        """Write into `resolution` what the server says of the rows."""
        index = np.flatnonzero(reply.served & (np.asarray(escalation.draft.tokens) >= 0))
        if not len(index):
            return
        resolution.traffic.decoded += len(index)
        reply = reply.select(index)
        rows, texts = escalation.rows[index], escalation.texts
        draft = escalation.draft.select(index)
        verdict = _verdict(reply, draft, self.config.vocab)
        finished = self.verifier.finish(draft, verdict, escalation.keys.select(index))
        resolution.tokens[index] = np.asarray(finished)
        resolution.stages[index] = np.where(reply.accepted, Stage.LLM_ACCEPTED, Stage.LLM_RESAMPLED)
        # What the device resamples itself the server does not know yet.
        known = (reply.tokens >= 0) & (not texts.given)
        self.sender.held(texts)[rows] = escalation.positions[index] + known
        resolution.feedback.append(feedback_of(rows, escalation.steps[index], reply))
        # With a shared draw verdicts are the LLM's own choice; other samples need not be.
        own = reply.accepted | shares_draw(self.verifier.name, self.config.sampling.decoding)
        resolution.is_llm_choice[index] = own


def _verdict(reply: Reply, draft: Draft, vocab: int) -> Verdict:
    """What a reply whose rows are all served says of their drafts, in arrays of their kind."""
    if isinstance(draft.tokens, np.ndarray):
        return Verdict(reply.accepted, reply.tokens)
    import torch

    target = None
    if reply.target_support.size:
        target = torch.zeros(len(reply), vocab, dtype=torch.int64)
        owners = np.repeat(np.arange(len(reply)), reply.target_counts)
        target[owners, reply.target_support] = torch.from_numpy(reply.target_weights)
    return Verdict(torch.from_numpy(reply.accepted), torch.from_numpy(reply.tokens), target)


def feedback_of(rows: IntArray, steps: IntArray, reply: Reply) -> TokenFeedback:
    """What a reply says of tokens; int64 `rows` and `steps` are the places of its rows' drafts.

    The last byte of a row is about the draft, those before it about the tokens before it.
    """
    sizes = reply.feedback_counts
    back = np.repeat(np.cumsum(sizes), sizes) - 1 - np.arange(sizes.sum())
    steps = np.repeat(steps, sizes) - back
    return TokenFeedback(np.repeat(rows, sizes), steps, reply.feedback, back == 0)
