"""Speculative decoding over a link: a few drafts a text go up in one message (lossless).

The device drafts a block of tokens, the LLM keeps the longest part that verification lets stand
and adds one token of its own, and the device goes back to there (Leviathan et al., arXiv
2211.17192). Every token is verified: there is no routing, and the text is the LLM's own. Greedily,
and with coupled draws, it is so token for token.
"""

from __future__ import annotations

import time

import numpy as np
from transformers import PreTrainedModel

from clients.block_uplink import Ahead, BlockUplink, Verified
from clients.decoding.drafting import Drafted, RouterConfig, draft_step
from clients.decoding.steps import ShrinkingDecoder, Step
from clients.decoding.ways import rollback_decoder
from clients.records import Stage, TextBatch, TokenRecords, Traffic
from hlm.arrays import IntArray


class SpeculativeDecoder:
    """Drafts in blocks; every token is decided by the LLM.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The small model.
    config : RouterConfig
        Sampling, seed, client, end tokens and the uncertainty that is recorded; audits and
        features play no part.
    uplink : BlockUplink
        Its verifier draws and decides.
    draft_tokens : int
        Most drafts of one text in one message, >= 1.

    Raises
    ------
    ValueError
        When `draft_tokens` is below 1.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        config: RouterConfig,
        uplink: BlockUplink,
        draft_tokens: int = 4,
    ) -> None:
        if draft_tokens < 1:
            raise ValueError(f"draft_tokens = {draft_tokens}: must be at least 1")
        self.model = model
        self.config = config
        self.uplink = uplink
        self.draft_tokens = draft_tokens

    def generate(self, texts: TextBatch, new_tokens: int, traffic: Traffic) -> TokenRecords:
        """Continue every text by up to `new_tokens` tokens; one message a round for all of them.

        Parameters
        ----------
        texts : TextBatch
            Grows in place; needs room for `new_tokens`.
        new_tokens : int
            Most tokens per text, >= 1; a text also ends at an end token.
        traffic : Traffic
            Counters, added to.

        Returns
        -------
        TokenRecords
            [rows, new_tokens]. The token that the LLM adds to a block it accepts whole was never
            drafted: its stage is ``llm_resampled``, its `draft` -1, its uncertainty NaN.
        """
        records = TokenRecords(len(texts.lengths), new_tokens)
        prompts = [texts.text(row) for row in range(len(texts.lengths))]
        begin = time.perf_counter()
        decoder = rollback_decoder(self.model, prompts)
        step = decoder.start()
        traffic.slm += time.perf_counter() - begin
        running = np.arange(len(prompts))
        ends = list(self.config.end_tokens)
        while True:
            begin = time.perf_counter()
            ahead = self._draft(decoder, step, texts, records, running)
            traffic.slm += time.perf_counter() - begin
            verified = self.uplink.verify(texts, ahead)
            traffic.include(verified.traffic)
            for feedback in verified.feedback:
                records.note_feedback(feedback)
            self._grow(texts, records, ahead, verified)
            begin = time.perf_counter()
            read = ahead.counts - 1
            decoder.take_back(
                np.maximum(read - np.where(verified.served, verified.accepted, read), 0)
            )
            lengths = texts.lengths[running]
            going = lengths - texts.prompt_lengths[running] < new_tokens
            going &= ~np.isin(texts.tokens[running, lengths - 1], ends)
            if not going.any():
                traffic.slm += time.perf_counter() - begin
                return records
            if not going.all():
                decoder.keep_rows(np.flatnonzero(going))
                running = running[going]
            step = decoder.read(*_unread(texts, decoder, running))
            traffic.slm += time.perf_counter() - begin

    def _draft(
        self,
        decoder: ShrinkingDecoder,
        step: Step,
        texts: TextBatch,
        records: TokenRecords,
        running: IntArray,
    ) -> Ahead:
        """Draft a block for every running text."""
        positions = texts.lengths[running].copy()
        steps = positions - texts.prompt_lengths[running]
        left = records.present.shape[1] - steps
        counts = np.minimum(left, self.draft_tokens)
        sessions = texts.sessions[running]
        ends = list(self.config.end_tokens)
        ended = np.zeros(len(running), np.bool_)
        drafts: list[Drafted] = []
        logits = step.logits
        while True:
            depth = len(drafts)
            verifier = self.uplink.verifier
            drafted = draft_step(self.config, verifier, logits, sessions, positions + depth)
            drafts.append(drafted)
            tokens = np.asarray(drafted.draft.tokens)
            # Those that are not reached are drafted again.
            wanted = counts > depth
            places = running[wanted], steps[wanted] + depth
            records.draft[places] = tokens[wanted]
            records.uncertainty[places] = drafted.uncertainty[wanted]
            records.probability[places] = drafted.probability[wanted]
            # Nothing follows the end of a text.
            stops = np.isin(tokens, ends) & wanted
            counts[stops], ended[stops] = depth + 1, True
            further = counts > depth + 1
            if not further.any():
                more = ~ended & (counts < left)
                made = [one.draft for one in drafts]
                return Ahead(running, steps, positions, counts, more, made, drafts[0].keys)
            logits = decoder.read(tokens[:, None], further.astype(np.int64)).logits

    def _grow(
        self, texts: TextBatch, records: TokenRecords, ahead: Ahead, verified: Verified
    ) -> None:
        """Add to each text what stands of its block, and the token after it."""
        for i, row in enumerate(ahead.rows):
            served, count = bool(verified.served[i]), int(ahead.counts[i])
            stand = int(verified.accepted[i]) if served else count
            stage = Stage.LLM_ACCEPTED if served else Stage.UNRESOLVED
            tokens = [int(draft.tokens[i]) for draft in ahead.drafts[:stand]]
            stages, choices = [stage] * stand, [1 if served else -1] * stand
            if verified.tokens[i] >= 0:
                tokens.append(int(verified.tokens[i]))
                stages.append(Stage.LLM_RESAMPLED)
                choices.append(1)  # a verifier for blocks shares the LLM's draw
            first, length = int(ahead.steps[i]), int(texts.lengths[row])
            made = slice(first, first + len(tokens))
            texts.tokens[row, length : length + len(tokens)] = tokens
            texts.lengths[row] += len(tokens)
            records.present[row, made] = records.escalated[row, made] = True
            records.token[row, made] = tokens
            records.position[row, made] = np.arange(length, length + len(tokens))
            records.stage[row, made] = stages
            records.choice[row, made] = choices
            _clear(records, int(row), slice(made.stop, first + count))


def _clear(records: TokenRecords, row: int, steps: slice) -> None:
    """Take back what was noted about drafts that never got an answer."""
    records.draft[row, steps] = -1
    records.uncertainty[row, steps] = records.probability[row, steps] = np.nan


def _unread(
    texts: TextBatch, decoder: ShrinkingDecoder, running: IntArray
) -> tuple[IntArray, IntArray]:
    """Tokens that the small model has not read yet, right-aligned, and their numbers."""
    counts = texts.lengths[running] - decoder.lengths
    columns = texts.lengths[running][:, None] - np.arange(int(counts.max()), 0, -1)
    return texts.tokens[running[:, None], columns], counts
