"""The router: draft, measure uncertainty, keep or send on, for all texts of a device at once.

One step drafts one token for every running text, and one call of the resolver chain carries all
rows that the policy did not keep.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from clients.decoding.slm import Step, read_texts
from clients.decoding.trace import text_traces, trace_of
from clients.decoding.ways import lockstep_decoder
from clients.policy import Policy, RoutingInput
from clients.records import FloatArray, IntArray, Stage, TextBatch, TokenRecords, Traffic
from clients.resolvers.chain import Escalation, Resolver, resolve_in_turn
from hlm.randomness import DrawKeys, Purpose, session_keys, uniforms
from hlm.sampling import Sampling, distribution
from hlm.verification import Draft, Greedy


class Drafter(Protocol):
    """The device's half of a verifier (`hlm.verification`)."""

    def draft(self, probs: torch.Tensor, keys: DrawKeys) -> Draft:
        """Draw one draft a row from float64 [rows, vocab]."""
        ...


UncertaintyMeasure = Callable[[torch.Tensor, torch.Tensor, DrawKeys], torch.Tensor]
"""(logits [rows, vocab], drafts int64 [rows], keys) -> float64 [rows] in [0, 1]."""

StepFeatures = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, IntArray, IntArray, NDArray[np.float32]],
    NDArray[np.float32],
]
"""(logits, hidden, drafts, positions, tokens, traces) -> float32 [rows, f], for learned policies.

``tokens`` int64 [rows, longest] are the texts and ``traces`` float32 [rows, longest, 3] how well
the small model predicted them (`clients.decoding.trace`); only the first ``positions`` of a row
may count.
"""


@dataclass(frozen=True)
class RouterConfig:
    """What stays the same for every text of a device.

    Attributes
    ----------
    sampling : Sampling
        How drafts are drawn.
    uncertainty : callable
        Measures uncertainty, see `UncertaintyMeasure`.
    seed : int
        Seed of all draws.
    client : int
        Number of the device; with a text's session number it keys the draws.
    end_tokens : frozenset of int
        Tokens that end a text.
    audit_rate : float
        Probability that a kept token is verified all the same, in [0, 1].
    features : callable or None
        Features of a step, for policies that need them.
    feature_count : int
        Their number.
    """

    sampling: Sampling
    uncertainty: UncertaintyMeasure
    seed: int
    client: int
    end_tokens: frozenset[int] = frozenset()
    audit_rate: float = 0.0
    features: StepFeatures | None = None
    feature_count: int = 0


class Router:
    """Routed inference on one device.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The small model.
    config : RouterConfig
        Fixed choices.
    policy : Policy
        Keeps or escalates; may be replaced between calls.
    drafter : Drafter
        Draws drafts and makes the claim about them that the LLM will verify.
    resolvers : sequence of Resolver
        Who decides escalated tokens, in order.
    on_kept : callable, optional
        Called with the tokens int64 [n] that the policy kept at a step, once the step is decided.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        config: RouterConfig,
        policy: Policy,
        drafter: Drafter,
        resolvers: Sequence[Resolver],
        on_kept: Callable[[IntArray], None] | None = None,
    ) -> None:
        self.model = model
        self.config = config
        self.policy = policy
        self.drafter = drafter
        self.resolvers = resolvers
        self.on_kept = on_kept
        self._hidden = policy.needs_features or any(r.needs_hidden for r in resolvers)

    def generate(self, texts: TextBatch, new_tokens: int, traffic: Traffic) -> TokenRecords:
        """Continue every text by up to `new_tokens` tokens, in lockstep.

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
            [rows, new_tokens].
        """
        records = TokenRecords(len(texts.lengths), new_tokens, self.config.feature_count)
        prompts = [texts.text(row) for row in range(len(texts.lengths))]
        begin = time.perf_counter()
        decoder = lockstep_decoder(self.model, prompts, self._hidden)
        step = decoder.start()
        traffic.slm += time.perf_counter() - begin
        running = np.arange(len(prompts))
        for index in range(new_tokens):
            steps = np.full(len(running), index, np.int64)
            tokens = self._route(step, texts, records, running, steps, traffic)
            texts.append(running, tokens)
            going = ~np.isin(tokens, list(self.config.end_tokens))
            if index + 1 == new_tokens or not going.any():
                break
            begin = time.perf_counter()
            if not going.all():
                decoder.keep_rows(np.flatnonzero(going))
                running, tokens = running[going], tokens[going]
            step = decoder.step(tokens)
            traffic.slm += time.perf_counter() - begin
        return records

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
        counts = texts.lengths - first
        records = TokenRecords(len(first), int(counts.max()), self.config.feature_count)
        begin = time.perf_counter()
        whole = [texts.text(row) for row in range(len(first))]
        read = read_texts(self.model, whole, self._hidden)
        if self.config.features is not None:
            texts.trace = text_traces(self.model, whole, texts.tokens.shape[1], read)
        logits = torch.cat([one.logits[at - 1 :] for one, at in zip(read, first, strict=True)])
        hidden = None
        if self._hidden:
            hidden = torch.cat(
                [
                    one.hidden[at - 1 :]
                    for one, at in zip(read, first, strict=True)
                    if one.hidden is not None
                ]
            )
        traffic.slm += time.perf_counter() - begin
        rows = np.repeat(np.arange(len(first)), counts)
        steps = np.concatenate([np.arange(count) for count in counts])
        self._route(Step(logits, hidden), texts, records, rows, steps, traffic, first[rows] + steps)
        return records

    def _route(
        self,
        step: Step,
        texts: TextBatch,
        records: TokenRecords,
        rows: IntArray,
        steps: IntArray,
        traffic: Traffic,
        positions: IntArray | None = None,
    ) -> IntArray:
        """Draft and decide one token for each of the given rows; int64 [rows]."""
        begin = time.perf_counter()
        if positions is None:
            positions = texts.lengths[rows]
        keys = DrawKeys(
            self.config.seed, session_keys(self.config.client, texts.sessions[rows]), positions
        )
        draft = self._draft(step.logits, keys)
        uncertainty = self.config.uncertainty(step.logits, draft.tokens, keys).numpy()
        inputs = self._routing_input(step, draft, keys, uncertainty, positions, texts, rows)
        kept = self.policy.keep(inputs)
        audited = self._audited(kept, keys)
        escalated = ~kept | audited
        drafts = draft.tokens.numpy()
        records.present[rows, steps] = True
        records.position[rows, steps] = positions
        records.draft[rows, steps] = drafts
        records.uncertainty[rows, steps] = self.policy.score(inputs)
        records.probability[rows, steps] = self._probability(step.logits, draft)
        records.kept[rows, steps] = kept
        records.audited[rows, steps] = audited
        records.escalated[rows, steps] = escalated
        if records.features is not None and inputs.features is not None:
            records.features[rows, steps] = inputs.features
        traffic.slm += time.perf_counter() - begin
        tokens, stages = drafts.copy(), np.full(len(rows), Stage.LOCAL, np.int8)
        if escalated.any():
            everything = Escalation(
                texts, records, rows, steps, positions, draft, keys, step.hidden, uncertainty
            )
            resolution = resolve_in_turn(self.resolvers, everything.select(escalated), traffic)
            tokens[escalated] = resolution.tokens
            stages[escalated] = resolution.stages
        if self.on_kept is not None and not escalated.all():
            self.on_kept(drafts[~escalated])
        records.token[rows, steps] = tokens
        records.stage[rows, steps] = stages
        if texts.trace is not None and not texts.given:
            texts.trace[rows, positions] = trace_of(step.logits, torch.from_numpy(tokens))
        return tokens

    def _draft(self, logits: torch.Tensor, keys: DrawKeys) -> Draft:
        if isinstance(self.drafter, Greedy) and self.config.sampling.decoding == "greedy":
            return self.drafter.draft_top(logits)
        return self.drafter.draft(distribution(logits, self.config.sampling), keys)

    def _routing_input(
        self,
        step: Step,
        draft: Draft,
        keys: DrawKeys,
        uncertainty: FloatArray,
        positions: IntArray,
        texts: TextBatch,
        rows: IntArray,
    ) -> RoutingInput:
        features = None
        if self.config.features is not None and step.hidden is not None:
            if texts.trace is None:
                whole = [texts.text(row) for row in range(len(texts.lengths))]
                texts.trace = text_traces(self.model, whole, texts.tokens.shape[1])
            features = self.config.features(
                step.logits,
                step.hidden,
                draft.tokens,
                positions,
                texts.tokens[rows],
                texts.trace[rows],
            )
        draws = None
        if self.policy.needs_uniforms:
            draws = uniforms(keys, Purpose.ROUTE, 1)[:, 0].numpy()
        return RoutingInput(uncertainty, features, draws)

    def _audited(self, kept: NDArray[np.bool_], keys: DrawKeys) -> NDArray[np.bool_]:
        if self.config.audit_rate <= 0 or not kept.any():
            return np.zeros_like(kept)
        draws = uniforms(keys, Purpose.AUDIT, 1)[:, 0].numpy()
        return np.asarray(kept & (draws < self.config.audit_rate))

    def _probability(self, logits: torch.Tensor, draft: Draft) -> FloatArray:
        """x_d of eq. 3: of the softmax in greedy decoding, else of what was drawn from."""
        if self.config.sampling.decoding == "sampled":
            return draft.probabilities.numpy()
        chosen = logits.gather(1, draft.tokens[:, None])[:, 0]
        return torch.exp(chosen - torch.logsumexp(logits, dim=1)).double().numpy()
