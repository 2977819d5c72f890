"""The router: draft, measure uncertainty, keep or send on, for all texts of a device at once.

One step drafts one token for every running text and gives each row its `Way`. Each way is one
source of tokens: kept drafts stand, and one call of the resolver chain carries all others. What the
sources return is put together row by row, and the router alone writes it into the records.

Where an escalation opens a stream, the LLM goes on writing a row until the device takes it back
(`clients.decoding.spans`): such a row's next token comes from the stream unless its draft is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clients.decoding.drafting import Drafted, RouterConfig, draft_step
from clients.decoding.read_ahead import ReadAhead
from clients.decoding.spans import Listener, SpanRouting, SpanRows
from clients.decoding.steps import Runtime, Step
from clients.decoding.trace import text_traces, trace_of
from clients.policy import Policy, RoutingInput
from clients.records import Stage, TextBatch, TokenRecords, Traffic, Way
from clients.resolvers.chain import Escalation, Resolution, Resolver, resolve_in_turn
from clients.resolvers.hits import AUDIT_KEPT, audit_draws
from hlm.arrays import BoolArray, IntArray
from hlm.verification import Verifier
from hlm.wire import NO_TOKEN

if TYPE_CHECKING:
    from transformers import PreTrainedModel

StepListener = Callable[[TokenRecords, IntArray, IntArray, Traffic], None]


class Router:
    """Routed inference on one device.

    Parameters
    ----------
    model : transformers.PreTrainedModel or Runtime
        The small model; given texts, features and hidden states take the first.
    config : RouterConfig
        Fixed choices.
    policy : Policy
        Keeps or escalates; may be replaced between calls.
    verifier : Verifier
        Draws drafts and makes the claim about them that the LLM will verify.
    resolvers : sequence of Resolver
        Who decides escalated tokens, in order.
    on_step : callable, optional
        Called once a step is decided with the records, where they tell of it (rows and steps,
        int64 [n]), and all traffic until then.
    learning : bool
        The resolvers may remember what was decided.
    spans : SpanRouting, optional
        Escalations open streams, while texts are generated, if its rule has any.
    """

    def __init__(
        self,
        model: PreTrainedModel | Runtime,
        config: RouterConfig,
        policy: Policy,
        verifier: Verifier,
        resolvers: Sequence[Resolver[Any]],
        on_step: StepListener | None = None,
        learning: bool = True,
        spans: SpanRouting | None = None,
    ) -> None:
        self.model: Any = model
        self.config = config
        self.policy = policy
        self.verifier = verifier
        self.resolvers = resolvers
        self.on_step = on_step
        self.learning = learning
        self.spans = spans if spans is not None and spans.rule.streams else None

    @property
    def _hidden(self) -> bool:
        return self.config.features is not None or any(r.needs_hidden for r in self.resolvers)

    def generate(self, texts: TextBatch, new_tokens: int, traffic: Traffic) -> TokenRecords:
        """Continue every text by up to `new_tokens` tokens, in lockstep.

        Parameters
        ----------
        texts : TextBatch
            Grows in place; needs room for `new_tokens`.
        new_tokens : int
            Most tokens per text, >= 1; a text also ends at an end token, or once it is `stopped`.
        traffic : Traffic
            Counters, added to.

        Returns
        -------
        TokenRecords
            [rows, new_tokens].
        """
        records = TokenRecords(len(texts.lengths), new_tokens, self.config.feature_count)
        running = np.arange(len(texts.lengths))
        listener, reader, written = self._listener(texts, records, traffic), None, None
        ends = np.array(sorted(self.config.end_tokens), np.int64)
        for index in range(new_tokens):
            left = new_tokens - index
            if listener is None:
                tokens = np.full(len(running), NO_TOKEN, np.int64)
            else:
                tokens = listener.next(running, index, left)
                if self.on_step is not None and len(there := np.flatnonzero(tokens != NO_TOKEN)):
                    listener.settle()
                    self.on_step(records, running[there], np.full(len(there), index), traffic)
            if tokens.min() == NO_TOKEN:
                if listener is not None:
                    listener.settle()
                    listener = None
                if reader is None:
                    reader, written = self._reading(texts, running, left, traffic)
                silent = np.flatnonzero(tokens == NO_TOKEN)
                step, rows = reader.step.select(silent), running[silent]
                steps, positions = np.full(len(rows), index, np.int64), texts.lengths[rows]
                tokens[silent] = self._step(
                    step, texts, records, rows, steps, positions, traffic, written
                )
            texts.append(running, tokens)
            going = ~texts.stopped[running]
            if len(ends):
                going &= ~np.isin(tokens, ends)
            if index + 1 == new_tokens or not going.any():
                break
            begin = time.perf_counter()
            if not going.all():
                if self.spans is not None:
                    self.spans.streams.stop(texts.sessions[running[~going]])
                if reader is not None:
                    reader.keep_rows(np.flatnonzero(going))
                running, tokens = running[going], tokens[going]
            if reader is not None:
                reader.append(tokens)
                traffic.slm += time.perf_counter() - begin
        if listener is not None:
            listener.settle()
        if self.spans is not None:
            traffic.include(self.spans.streams.finish())
        return records

    def _listener(
        self, texts: TextBatch, records: TokenRecords, traffic: Traffic
    ) -> Listener | None:
        """Where the LLM writes every token, and nobody looks at drafts or states."""
        spans = self.spans
        if spans is None or spans.rule.reads_along or spans.drafts:
            return None
        if self._hidden or len(self.resolvers) > 1:
            return None
        return Listener(spans.streams, self.config, texts, records, traffic)

    def _reading(
        self, texts: TextBatch, rows: IntArray, left: int, traffic: Traffic
    ) -> tuple[ReadAhead, SpanRows | None]:
        """Begin to read texts (int64 [n]) that lack `left` tokens; which of them the LLM writes."""
        begin = time.perf_counter()
        prompts = [texts.text(row) for row in rows]
        if self.config.features is not None:
            texts.trace = text_traces(self.model, prompts, texts.tokens.shape[1])
        most = 0 if self.spans is None else self.spans.rule.ahead - 1
        reader, written = ReadAhead(self.model, prompts, self._hidden, most), None
        if self.spans is not None:
            ends = self.config.end_tokens
            written = SpanRows(self.spans, reader, texts.sessions, left, ends)
        traffic.slm += time.perf_counter() - begin
        return reader, written

    def score(self, texts: TextBatch, first: IntArray, traffic: Traffic) -> TokenRecords:
        """Route the next token of given texts: contexts do not depend on earlier routing.

        Parameters
        ----------
        texts : TextBatch
            Complete texts; not changed.
        first : numpy.ndarray
            int64 [rows], the first position of each text that is routed, >= 1.
        traffic : Traffic
            Counters, added to.

        Returns
        -------
        TokenRecords
            [rows, longest number of routed positions]; entry (row, j) is position first + j.
        """
        import torch

        from clients.decoding.slm import read_texts

        counts = texts.lengths - first
        records = TokenRecords(len(first), int(counts.max()), self.config.feature_count)
        begin = time.perf_counter()
        whole = [texts.text(row) for row in range(len(first))]
        read = read_texts(self.model, whole, self._hidden)
        if self.config.features is not None:
            texts.trace = text_traces(self.model, whole, texts.tokens.shape[1], read)
        logits = torch.cat([one.logits[at - 1 :] for one, at in zip(read, first, strict=True)])
        states = [
            one.hidden[at - 1 :]
            for one, at in zip(read, first, strict=True)
            if one.hidden is not None
        ]
        step = Step(logits, torch.cat(states) if states else None)
        traffic.slm += time.perf_counter() - begin
        rows = np.repeat(np.arange(len(first)), counts)
        steps = np.concatenate([np.arange(count) for count in counts])
        positions = first[rows] + steps
        self._step(step, texts, records, rows, steps, positions, traffic)
        return records

    def _step(
        self,
        step: Step,
        texts: TextBatch,
        records: TokenRecords,
        rows: IntArray,
        steps: IntArray,
        positions: IntArray,
        traffic: Traffic,
        written: SpanRows | None = None,
    ) -> IntArray:
        """Draft, measure, choose each row's way, decide and record: one token a row, int64 [n]."""
        begin = time.perf_counter()
        drafted, inputs = self._draft(step, texts, rows, positions)
        kept = sure = self.policy.keep(inputs)
        streaming = np.zeros(len(rows), np.bool_)
        if written is not None:
            look = partial(self._look, written.reader, texts, rows, positions)
            kept = written.kept(rows, np.asarray(drafted.draft.tokens), sure, look)
            streaming = written.streaming(rows)
        ways = self._ways(inputs, kept)
        spans = np.zeros(len(rows), np.int64)
        if written is not None:
            spans[ways == Way.ESCALATED] = written.remaining - 1
            written.stop(rows[ways == Way.KEPT])
        traffic.slm += time.perf_counter() - begin
        everything = Escalation(
            texts=texts,
            rows=rows,
            steps=steps,
            positions=positions,
            draft=drafted.draft,
            keys=drafted.keys,
            hidden=step.hidden,
            uncertainty=drafted.uncertainty,
            audited=(ways == Way.AUDITED) | streaming,
            spans=spans,
        )
        decided = self._decide(everything, ways)
        traffic.include(decided.traffic)
        records.sure[rows, steps] = sure
        records.probability[rows, steps] = drafted.probability
        self._record(records, everything, inputs, ways, decided)
        if written is not None:
            told = streaming & decided.is_llm_choice
            agreed = decided.tokens == np.asarray(drafted.draft.tokens)
            records.draft_choice[rows[told], steps[told]] = agreed[told]
            written.note(rows, ways, decided)
        if self.on_step is not None:
            self.on_step(records, rows, steps, traffic)
        if texts.trace is not None and not texts.given:
            texts.trace[rows, positions] = trace_of(step.logits, decided.tokens)
        return decided.tokens

    def _draft(
        self, step: Step, texts: TextBatch, rows: IntArray, positions: IntArray
    ) -> tuple[Drafted, RoutingInput]:
        """Draft the next tokens of rows (int64 [n]), and what the policy looks at."""
        drafted = draft_step(
            self.config, self.verifier, step.logits, texts.sessions[rows], positions
        )
        features = None
        if self.config.features is not None and step.hidden is not None and texts.trace is not None:
            features = self.config.features(
                step.logits,
                step.hidden,
                drafted.draft.tokens,
                positions,
                texts.tokens[rows],
                texts.trace[rows],
            )
        return drafted, RoutingInput(drafted.uncertainty, drafted.keys, features)

    def _look(
        self,
        reader: ReadAhead,
        texts: TextBatch,
        rows: IntArray,
        positions: IntArray,
        depth: int,
        drafts: IntArray,
        wanted: BoolArray,
    ) -> tuple[IntArray, BoolArray]:
        """See `clients.decoding.spans.Look`."""
        chosen = np.flatnonzero(wanted)
        places = rows[chosen], positions[chosen] + depth - 1
        if texts.trace is not None:
            # Features are of the text with its drafts: it has room that it has not grown into.
            before = reader.steps[depth - 1].select(chosen)
            texts.tokens[places] = drafts[chosen]
            texts.trace[places] = trace_of(before.logits, drafts[chosen])
        step = reader.behind(drafts, depth, wanted).select(chosen)
        drafted, inputs = self._draft(step, texts, rows[chosen], positions[chosen] + depth)
        drafts, sure = drafts.copy(), np.zeros(len(rows), np.bool_)
        drafts[chosen], sure[chosen] = np.asarray(drafted.draft.tokens), self.policy.keep(inputs)
        return drafts, sure

    def _ways(self, inputs: RoutingInput, kept: BoolArray) -> NDArray[np.int8]:
        """What becomes of each draft, a `Way`, int8 [n]."""
        ways = np.where(kept, Way.KEPT, Way.ESCALATED).astype(np.int8)
        if self.config.audit_rate > 0 and kept.any():
            drawn = audit_draws(inputs.keys, AUDIT_KEPT) < self.config.audit_rate
            ways[kept & drawn] = Way.AUDITED
        return ways

    def _decide(self, everything: Escalation, ways: NDArray[np.int8]) -> Resolution[Any]:
        """The token of each row, from whoever its way leads to."""
        drafts = np.asarray(everything.draft.tokens)
        decided: Resolution[Any] = Resolution.none(len(ways))
        kept = ways == Way.KEPT
        decided.tokens[kept], decided.stages[kept] = drafts[kept], Stage.LOCAL
        if not kept.all():
            asked = everything.select(~kept)
            decided.include(~kept, resolve_in_turn(self.resolvers, asked, self.learning))
        return decided

    def _record(
        self,
        records: TokenRecords,
        everything: Escalation,
        inputs: RoutingInput,
        ways: NDArray[np.int8],
        decided: Resolution[Any],
    ) -> None:
        """Write down a step: nobody else writes what became of a token."""
        places = everything.rows, everything.steps
        records.present[places] = True
        records.position[places] = everything.positions
        records.draft[places] = np.asarray(everything.draft.tokens)
        records.uncertainty[places] = self.policy.score(inputs)
        if records.features is not None and inputs.features is not None:
            records.features[places] = inputs.features
        records.kept[places] = ways != Way.ESCALATED
        records.audited[places] = ways == Way.AUDITED
        records.escalated[places] = ways != Way.KEPT
        records.token[places] = decided.tokens
        records.stage[places] = decided.stages
        for feedback in decided.feedback:
            records.note_feedback(feedback)
        records.choice[places] = np.where(decided.is_llm_choice, 1, records.choice[places])
