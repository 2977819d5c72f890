"""The way to the LLM: what the server lacks goes up, a verdict and feedback come down.

The uplink keeps track of how many tokens of each text the server holds and sends only the rest.
When the server has dropped a text it says so, and the prefix is sent again without the router
noticing. When no answer comes, the tokens stay with the device's drafts, and for a while the
server is not asked at all.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch

from clients.records import Stage, TextBatch, TokenFeedback, TokenRecords, Traffic
from clients.resolvers.chain import Asked, Escalation, Resolution
from clients.resolvers.link import Link
from clients.resolvers.messages import digest_of, messages, resent
from hlm.arrays import IntArray
from hlm.randomness import DrawKeys
from hlm.sampling import Sampling
from hlm.transport import LinkDown, Transport
from hlm.verification import VERIFIERS, Claim, Draft, Verdict, plain_verifier, shares_draw
from hlm.wire import (
    IDENTITY_BYTES,
    Request,
    Row,
    RowReply,
    Status,
    decode_reply,
    encode_request,
)
from hlm.wire.claims import claim_fields, verdict_of


class Finisher(Protocol):
    """The device's half of a verifier, after the verdict."""

    name: str

    def finish(self, draft: Draft, verdict: Verdict, keys: DrawKeys) -> torch.Tensor:
        """Tokens int64 [rows], resampled on the device where the server left that to it."""
        ...


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


class LanguageModelUplink:
    """Resolver that asks the LLM server.

    Parameters
    ----------
    transport : Transport
        Carries bytes.
    verifier : Finisher
        How escalated tokens are decided.
    config : UplinkConfig
        See there.

    Attributes
    ----------
    link : Link
        Sends the requests.
    """

    needs_hidden = False
    verifies = True

    def __init__(self, transport: Transport, verifier: Finisher, config: UplinkConfig) -> None:
        self.verifier = verifier
        self.config = config
        self.link = Link(transport, "llm")

    def resolve(self, escalation: Escalation) -> Resolution[None]:
        """Have the rows verified; rows without an answer stay undecided."""
        resolution: Resolution[None] = Resolution.none(len(escalation.rows))
        if self.link.asleep:
            return resolution
        try:
            self._ask(escalation, resolution)
        except LinkDown:
            # Whether the server took the tokens in is unknown: the next request is a whole one.
            escalation.texts.held[escalation.rows] = 0
        return resolution

    def learn(
        self, escalation: Escalation, final: Resolution[Any], asked: Asked[None] | None
    ) -> Traffic:
        """Nothing to remember: the server keeps the texts."""
        return Traffic()

    def measure(
        self, texts: TextBatch, records: TokenRecords, traffic: Traffic, *, learned: bool = False
    ) -> None:
        """Let the LLM read every routed place it has not seen, for the report alone.

        The method does not need this, so its bytes go to `traffic.measured` only, and what it
        finds is marked `measured_only`. Call it last: it moves what the server holds.

        With `learned` the method does need it (a rule that calibrates on kept tokens): its bytes
        are traffic like any other, and the device may learn from what it finds.
        """
        unread = np.isnan(records.log_prob) if learned else records.choice < 0
        missing = records.present & unread
        if not missing.any() or self.link.asleep:
            return
        places = list(zip(*(axis.tolist() for axis in np.nonzero(missing)), strict=True))
        measured, owners = list[Row](), [row for row, _ in places]
        for row, step in places:
            end = int(records.position[row, step])
            start = min(int(texts.held[row]), end)
            tokens = texts.tokens[row, start:end]
            draft = int(records.token[row, step])
            session = int(texts.sessions[row])
            measured.append(Row(session, start, tokens, draft, quiet=len(tokens)))
            texts.held[row] = end
        counted = Traffic()
        try:
            plain = plain_verifier(self.config.sampling.decoding)
            ask = partial(self._exchange, texts, plain, True, counted)
            replies = ask(measured, owners)
            again = [i for i, r in enumerate(replies) if r.status == Status.PREFIX_NEEDED]
            if again:
                whole = resent(measured, again, texts, owners)
                for i, reply in zip(again, ask(whole, [owners[i] for i in again]), strict=True):
                    replies[i] = reply
        except LinkDown:
            return
        finally:
            traffic.include(counted if learned else counted.as_measured())
        told = [
            (row, step, reply.feedback[-1])
            for (row, step), reply in zip(places, replies, strict=True)
            if reply.status == Status.OK and reply.feedback is not None and len(reply.feedback)
        ]
        if told:
            rows, steps, codes = (np.array(column) for column in zip(*told, strict=True))
            about_draft = np.zeros(len(rows), np.bool_)
            records.note_feedback(TokenFeedback(rows, steps, codes, about_draft))
            records.measured_only[rows, steps] = not learned

    def _ask(self, escalation: Escalation, resolution: Resolution[None]) -> None:
        """Write into `resolution` what the server says of the rows."""
        claim = escalation.draft.claim
        rows = [self._row(escalation, i, claim) for i in range(len(escalation.rows))]
        owners = escalation.rows.tolist()
        feedback = self.config.feedback or self.config.draft_feedback
        traffic = resolution.traffic
        ask = partial(self._exchange, escalation.texts, self.verifier.name, feedback, traffic)
        replies = ask(rows, owners)
        again = [i for i, reply in enumerate(replies) if reply.status == Status.PREFIX_NEEDED]
        if again:
            whole = resent(rows, again, escalation.texts, owners)
            for i, reply in zip(again, ask(whole, [owners[i] for i in again]), strict=True):
                replies[i] = reply
        index = np.flatnonzero([reply.status == Status.OK for reply in replies])
        if not len(index):
            return
        answered = [reply for reply in replies if reply.status == Status.OK]
        chosen = torch.from_numpy(index)
        draft = escalation.draft.select(chosen)
        verdict = verdict_of(answered, self.config.vocab)
        tokens = self.verifier.finish(draft, verdict, escalation.keys.select(index)).numpy()
        accepted = verdict.accepted.numpy()
        resolution.tokens[index] = tokens
        resolution.stages[index] = np.where(accepted, Stage.LLM_ACCEPTED, Stage.LLM_RESAMPLED)
        texts = escalation.texts
        # What the device resamples itself the server does not know yet.
        known = (verdict.tokens.numpy() >= 0) & (not texts.given)
        np.put(texts.held, escalation.rows[index], escalation.positions[index] + known)
        resolution.feedback.append(feedback_of(escalation, index, answered))
        # With a shared draw verdicts are the LLM's own choice; other samples need not be.
        own = accepted | shares_draw(self.verifier.name, self.config.sampling.decoding)
        resolution.is_llm_choice[index] = own

    def _row(self, escalation: Escalation, i: int, claim: Claim) -> Row:
        row, position = int(escalation.rows[i]), int(escalation.positions[i])
        texts = escalation.texts
        start = min(int(texts.held[row]), position)
        tokens = texts.tokens[row, start:position]
        if not (self.config.feedback or self.config.draft_feedback):
            quiet = 0  # nothing is told anyway
        elif self.config.feedback and not texts.given:
            quiet = min(max(int(texts.prompt_lengths[row]) - start, 0), len(tokens))
        else:
            quiet = len(tokens)
        fields = claim_fields(claim, i)
        draft = int(escalation.draft.tokens[i])
        # Later rows of the same text in this message start where this one ends.
        texts.held[row] = position
        return Row(int(texts.sessions[row]), start, tokens, draft, quiet=quiet, **fields)

    def _exchange(
        self,
        texts: TextBatch,
        verifier: str,
        feedback: bool,
        traffic: Traffic,
        rows: Sequence[Row],
        owners: Sequence[int],
    ) -> list[RowReply]:
        """Ask about rows of `texts` (`owners` says which), in as many messages as it takes."""
        replies: list[RowReply] = []
        for part in messages(rows, self.config.vocab):
            digest = digest_of(rows[part], texts, owners[part], self.config.identity)
            replies += self._send(rows[part], digest, verifier, feedback, traffic)
        return replies

    def _send(
        self, rows: Sequence[Row], digest: int, verifier: str, feedback: bool, traffic: Traffic
    ) -> Sequence[RowReply]:
        """One message and its reply."""
        sampling = self.config.sampling
        request = Request(
            verifier=verifier,
            vocab=self.config.vocab,
            rows=tuple(rows),
            seed=self.config.seed,
            client=self.config.client,
            feedback=feedback,
            decoding=sampling.decoding,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            bits=VERIFIERS[verifier].bits,
            identity=self.config.identity if any(row.start == 0 for row in rows) else b"",
            digest=digest,
        )
        payload = encode_request(request)
        return self.link.exchange(payload, lambda b: decode_reply(b, request), traffic).rows


def feedback_of(
    escalation: Escalation, index: IntArray, replies: Sequence[RowReply]
) -> TokenFeedback:
    """What replies say of tokens; `index` (int64) are their rows of the escalation.

    The last byte of a reply is about the draft, those before it about the tokens before it.
    """
    codes = [np.empty(0, np.uint8) if r.feedback is None else r.feedback for r in replies]
    sizes = np.array([len(part) for part in codes])
    back = np.repeat(np.cumsum(sizes), sizes) - 1 - np.arange(sizes.sum())
    steps = np.repeat(escalation.steps[index], sizes) - back
    rows = np.repeat(escalation.rows[index], sizes)
    return TokenFeedback(rows, steps, np.concatenate(codes), back == 0)
