"""The way to the LLM: what the server lacks goes up, a verdict and feedback come down.

The uplink keeps track of how many tokens of each text the server holds and sends only the rest.
When the server has dropped a text it says so, and the prefix is sent again without the router
noticing. When no answer comes, the tokens stay with the device's drafts, and for a while the
server is not asked at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from clients.back_off import BackOff
from clients.llm_link import LinkDown, LlmLink, Transport
from clients.records import IntArray, Stage, TextBatch, TokenRecords, Traffic
from clients.resolving import Escalation, Resolution
from hlm.randomness import DrawKeys
from hlm.sampling import Sampling
from hlm.verification import UNDECIDED, Claim, Draft, Verdict
from hlm.wire import (
    Reply,
    Request,
    Row,
    RowReply,
    Status,
    decode_reply,
    encode_request,
)
from hlm.wire.claims import claim_fields, verdict_of

MOST_ATTEMPTS = 16


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
        The law the LLM draws from.
    seed : int
        Keys the server's draws; > 0 where decoding is sampled, so that a run repeats.
    feedback : bool
        Ask for a byte about each kept token the server reads (free feedback).
    draft_feedback : bool
        Ask for a byte about each escalated draft; always so with `feedback`.
    first_pause, longest_pause : float
        Seconds for which the server is left alone after a failure; doubles with each further
        one, and starts again after an answer.
    """

    client: int
    vocab: int
    sampling: Sampling
    seed: int = 0
    feedback: bool = True
    draft_feedback: bool = True
    first_pause: float = 0.5
    longest_pause: float = 30.0


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
    link : LlmLink
        Sends the requests.
    """

    needs_hidden = False
    verifies = True

    def __init__(self, transport: Transport, verifier: Finisher, config: UplinkConfig) -> None:
        self.verifier = verifier
        self.config = config
        self.link = LlmLink(transport, BackOff(config.first_pause, config.longest_pause))

    def resolve(self, escalation: Escalation, traffic: Traffic) -> Resolution:
        """Have the rows verified; rows without an answer stay undecided."""
        resolution = Resolution.none(len(escalation.rows))
        if self.link.asleep:
            return resolution
        try:
            pending, claim = np.arange(len(escalation.rows)), escalation.draft.claim
            for _ in range(MOST_ATTEMPTS):
                pending = self._attempt(escalation, pending, claim, resolution, traffic)
                if not len(pending):
                    break
                claim = claim.ask_again()
        except LinkDown:
            # Whether the server took the tokens in is unknown: the next request is a whole one.
            escalation.texts.held[escalation.rows] = 0
        return resolution

    def learn(self, escalation: Escalation, resolution: Resolution, traffic: Traffic) -> None:
        """Nothing to remember: the server keeps the texts."""

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
        measured: list[Row] = []
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
            replies = self._exchange(measured, self._plain_verifier(), True, counted)
            again = [i for i, r in enumerate(replies) if r.status == Status.PREFIX_NEEDED]
            whole = _resent(measured, again, texts, [row for row, _ in places])
            if whole:
                resent = self._exchange(whole, self._plain_verifier(), True, counted)
                for i, reply in zip(again, resent, strict=True):
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
            rows, steps, feedback = (np.array(column) for column in zip(*told, strict=True))
            note_feedback(records, rows, steps, feedback)
            records.measured_only[rows, steps] = not learned

    def _attempt(
        self,
        escalation: Escalation,
        pending: IntArray,
        claim: Claim,
        resolution: Resolution,
        traffic: Traffic,
    ) -> IntArray:
        """Ask about the pending rows once; those that must be asked again, int64."""
        rows = [self._row(escalation, i, claim) for i in pending]
        feedback = self.config.feedback or self.config.draft_feedback
        replies = self._exchange(rows, self.verifier.name, feedback, traffic)
        again = [i for i, reply in enumerate(replies) if reply.status == Status.PREFIX_NEEDED]
        if again:
            whole = _resent(rows, again, escalation.texts, escalation.rows[pending])
            resent = self._exchange(whole, self.verifier.name, feedback, traffic)
            for i, row, reply in zip(again, whole, resent, strict=True):
                rows[i], replies[i] = row, reply
        served = np.array([reply.status == Status.OK for reply in replies])
        index: IntArray = pending[served]
        if not len(index):
            return index
        answered = [reply for reply in replies if reply.status == Status.OK]
        chosen = torch.from_numpy(index)
        draft = escalation.draft.select(chosen)
        verdict = verdict_of(answered, draft.claim.tokens, self.config.vocab)
        tokens = self.verifier.finish(draft, verdict, escalation.keys.select(index)).numpy()
        accepted = verdict.accepted.numpy()
        decided = tokens != UNDECIDED
        resolution.tokens[index] = tokens
        resolution.stages[index[decided]] = np.where(
            accepted[decided], Stage.LLM_ACCEPTED, Stage.LLM_RESAMPLED
        )
        texts = escalation.texts
        # What the device resamples itself the server does not know yet.
        known = (verdict.tokens.numpy() >= 0) & (not texts.given)
        np.put(texts.held, escalation.rows[index], escalation.positions[index] + known)
        self._note(escalation, index, answered)
        greedy = self.config.sampling.decoding == "greedy"
        final = accepted | greedy | (self.verifier.name == "coupled")
        records, places = escalation.records, (escalation.rows[index], escalation.steps[index])
        # Greedy and coupled verdicts are the LLM's own choice; other samples need not be.
        records.choice[places] = np.where(final, 1, records.choice[places])
        still_open: IntArray = index[~decided]
        return still_open

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

    def _note(self, escalation: Escalation, index: IntArray, replies: Sequence[RowReply]) -> None:
        """Write the feedback bytes of rows' replies to the places they are about.

        The last byte of a reply is about the draft, those before it about the tokens before it.
        """
        told = [np.empty(0, np.uint8) if r.feedback is None else r.feedback for r in replies]
        sizes = np.array([len(part) for part in told])
        feedback = np.concatenate(told)
        back = np.repeat(np.cumsum(sizes), sizes) - 1 - np.arange(len(feedback))
        rows = np.repeat(escalation.rows[index], sizes)
        steps = np.repeat(escalation.steps[index], sizes) - back
        records, drafts, before = escalation.records, back == 0, back > 0
        note_feedback(records, rows[before], steps[before], feedback[before])
        places = rows[drafts], steps[drafts]
        records.log_prob[places] = -(feedback[drafts] & 0x7F).astype(np.float64) / 8
        records.draft_choice[places] = feedback[drafts] >> 7

    def _exchange(
        self, rows: list[Row], verifier: str, feedback: bool, traffic: Traffic
    ) -> list[RowReply]:
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
            bits=16 if verifier == "full" else 8,
        )
        payload = encode_request(request)
        reply: Reply = decode_reply(self.link.exchange(payload, traffic), request)
        return list(reply.rows)

    def _plain_verifier(self) -> str:
        return "greedy" if self.config.sampling.decoding == "greedy" else "coupled"


def note_feedback(
    records: TokenRecords, rows: IntArray, steps: IntArray, feedback: NDArray[np.uint8]
) -> None:
    """Note the LLM's view of tokens.

    Parameters
    ----------
    records : TokenRecords
        Changed in place.
    rows, steps : numpy.ndarray
        int64 [n], routed places the bytes are about.
    feedback : numpy.ndarray
        uint8 [n]: bit 7 says that the token is the LLM's own choice, bits 0-6 are
        ``round(-8 ln y)``.
    """
    choice = (feedback >> 7).astype(np.int8)
    records.choice[rows, steps] = choice
    same = records.token[rows, steps] == records.draft[rows, steps]
    places = rows[same], steps[same]
    records.log_prob[places] = -(feedback[same] & 0x7F).astype(np.float64) / 8
    records.draft_choice[places] = choice[same]


def _resent(
    rows: Sequence[Row], again: Sequence[int], texts: TextBatch, owners: Sequence[int] | IntArray
) -> list[Row]:
    """The same questions, and the whole prefix in the first of each text.

    Feedback is wanted for what it was before.
    """
    found: list[Row] = []
    for i in again:
        row = rows[i]
        if not found or found[-1].session != row.session:
            end = row.start + len(row.tokens)
            whole = texts.tokens[owners[i], :end]
            row = replace(row, start=0, tokens=whole, quiet=row.start + row.quiet)
        found.append(row)
    return found
