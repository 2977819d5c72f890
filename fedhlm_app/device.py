"""A simulated or real device: everything it needs to route texts, put together from settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import torch

from clients.edge import EdgeTransport
from clients.feedback import Feedback
from clients.policy import FixedPolicy, Policy, RandomPolicy, RouterPolicy, ThresholdPolicy
from clients.records import BoolArray, FloatArray, IntArray, TokenRecords, Traffic
from clients.routing import Router, RouterConfig, UncertaintyMeasure
from clients.uplink import LanguageModelUplink, Transport, UplinkConfig
from fedhlm_app.calibrating import calibrates, is_sequential, reads_kept_tokens
from fedhlm_app.data.items import Items, Split, load_items
from fedhlm_app.data.partitions import partition, split_client
from fedhlm_app.edge import EdgeSide, has_edge
from fedhlm_app.pair.load import load_slm, load_tokenizer
from fedhlm_app.router import (
    escalates_all,
    router_columns,
    router_features,
    router_model,
    texts_of_round,
)
from fedhlm_app.settings import Settings
from fedhlm_app.torch_names import torch_device, torch_dtype
from fedhlm_app.verifiers import verifier_of
from fedhlm_app.workload import Work, WorkMaker, correct
from hlm import uncertainty
from hlm.randomness import DrawKeys, Purpose, uniforms
from hlm.risk import ESCALATE_ALL
from hlm.sampling import Sampling
from hlm.verification import Verifier

EVALUATION_SESSIONS = 1 << 30
"""Session numbers of evaluation start here, out of the way of training."""


@dataclass(frozen=True)
class Routed:
    """What came of routing some texts.

    Attributes
    ----------
    records : list of TokenRecords
        One for each batch of texts.
    traffic : Traffic
        Bytes and waiting.
    correct, answered : int
        Routed tokens that are right, of those for which it is known what is right.
    rows : list of numpy.ndarray
        int64, the items each batch was made of.
    read : int
        Kept tokens that were sent for reading, so that a rule could calibrate on them.
    calibration : numpy.ndarray or None
        bool, prompts of the first batch that a calibration may count; None where there is none.
    """

    records: list[TokenRecords]
    traffic: Traffic
    correct: int
    answered: int
    rows: list[IntArray] = field(default_factory=list)
    read: int = 0
    calibration: BoolArray | None = None


class Device:
    """One client: its data, its small model, its way to the LLM.

    Parameters
    ----------
    settings : Settings
        Of the run.
    client : int
        Index of the device's data partition.
    transport : Transport
        Reaches the LLM service.
    edge_link : callable, optional
        Cluster number to the transport of its edge server; needed with the edge tier.
    """

    def __init__(
        self,
        settings: Settings,
        client: int,
        transport: Transport,
        edge_link: Callable[[int], EdgeTransport] | None = None,
    ) -> None:
        self.settings = settings
        self.client = client
        self.sampling = sampling_of(settings)
        self.model = load_slm(
            settings.slm, torch_dtype(settings.dtype), torch_device(settings.device)
        )
        items = items_of(settings)
        shares = partition(
            items,
            settings.clients,
            settings.partition,
            settings.dirichlet_alpha,
            settings.seed,
        )
        if client >= len(shares):
            raise ValueError(f"partition-id = {client}: the run has clients 0 .. {len(shares) - 1}")
        self.train_rows, self.held_out_rows = split_client(
            shares[client], settings.held_out_fraction, settings.seed
        )
        tokenizer = load_tokenizer(settings.slm)
        self.work = WorkMaker(
            items,
            tokenizer,
            settings.workload,
            settings.prompt_tokens,
            settings.tokens_per_prompt,
        )
        self.verifier: Verifier = verifier_of(settings)
        self.uplink = LanguageModelUplink(
            transport,
            self.verifier,
            UplinkConfig(
                client=client,
                vocab=int(self.model.config.get_text_config().vocab_size),
                sampling=self.sampling,
                seed=shared_seed(settings),
                feedback=settings.free_feedback,
            ),
        )
        self.edge: EdgeSide | None = None
        if has_edge(settings):
            if edge_link is None:
                raise ValueError("cache-mode, peer-mode: the edge tier needs a link to the edge")
            self.edge = EdgeSide(settings, client, self.model, edge_link)
        routed = settings.policy == "router"
        self.config = RouterConfig(
            sampling=self.sampling,
            uncertainty=uncertainty_of(settings),
            seed=settings.seed + 1,
            client=client,
            end_tokens=end_tokens(self.model),
            audit_rate=settings.audit_rate,
            features=router_features(settings, self.model) if routed else None,
            feature_count=router_columns(settings).count if routed else 0,
        )

    def train_round(self, policy: Policy, server_round: int, calibrate: bool = False) -> Routed:
        """Route `tokens-per-round` tokens of this device's training texts.

        Texts are drawn by (seed, client, round), so a repeated round is the same round.

        Parameters
        ----------
        policy : Policy
            Keeps or escalates.
        server_round : int
            From 1.
        calibrate : bool
            The round gathers sums for a guarantee: kept tokens are read by the LLM too, unless
            audits stand for them, and the prompts that may count are marked.
        """
        budget = self.settings.tokens_per_round
        generator = np.random.default_rng([self.settings.seed, self.client, server_round])
        routed = Routed([], Traffic(), 0, 0)
        session = server_round << 12
        if escalates_all(self.settings, server_round):
            policy = self.policy(np.concatenate([[ESCALATE_ALL], policy.parameters[1:]]))
        items, turn = texts_of_round(self.settings, self.train_rows, self.client, server_round)
        calibration = None
        while budget > 0:
            each = min(self.work.tokens_each, budget)
            count = max(1, budget // each)
            rows = generator.choice(items, count, replace=count > len(items))
            if calibration is None:
                rows, calibration = self._calibration_rows(rows, items, turn)
            sessions = session + np.arange(count)
            session += count
            reading = calibrate and reads_kept_tokens(self.settings)
            work = self.work.make(rows, sessions, each)
            routed = self._route(policy, work, routed, rows, reading)
            budget -= routed.records[-1].tokens
        return replace(routed, calibration=calibration if calibrate else None)

    def _calibration_rows(
        self, drawn: IntArray, items: IntArray, turn: int
    ) -> tuple[IntArray, BoolArray]:
        """Items of a round's first batch, and which of them a calibration may count.

        Only first batches count: later ones fill up what early ends left, with shorter prompts.
        In generation a text is new whenever its threshold is, so the round's draw serves. Given
        texts are the same at every threshold and may count once: they are taken in one random
        order, and no further when it has come round.
        """
        # A certified router must not be calibrated on what trained it: a single item did.
        countable = self.settings.policy != "router" or len(self.train_rows) > 1
        if not calibrates(self.settings) or is_sequential(self.settings):
            return drawn, np.full(len(drawn), countable)
        generator = np.random.default_rng([self.settings.seed, self.client])
        order = generator.permutation(items)
        slots = (turn - 1) * len(drawn) + np.arange(len(drawn))
        return order[slots % len(order)], (slots < len(order)) & countable

    def evaluate(self, policy: Policy) -> Routed:
        """Route held-out texts, the same ones each time."""
        rows = self.held_out_rows[: self.settings.evaluate_prompts]
        if not len(rows):
            return Routed([], Traffic(), 0, 0)
        sessions = EVALUATION_SESSIONS + np.arange(len(rows))
        work = self.work.make(rows, sessions)
        nothing = Routed([], Traffic(), 0, 0)
        # Held-out texts come again: a cache that kept them would look better each time.
        return self._route(policy, work, nothing, np.asarray(rows), learning=False)

    def _route(
        self,
        policy: Policy,
        work: Work,
        before: Routed,
        rows: IntArray,
        reading: bool = False,
        learning: bool = True,
    ) -> Routed:
        tiers = [] if self.edge is None else self.edge.resolvers(learning)
        router = Router(self.model, self.config, policy, self.verifier, [*tiers, self.uplink])
        traffic = Traffic()
        if work.texts.given:
            records = router.score(work.texts, work.first, traffic)
        else:
            records = router.generate(work.texts, work.new_tokens, traffic)
        read = 0
        if reading:
            known = int(np.isfinite(records.log_prob).sum())
            self.uplink.measure(work.texts, records, traffic, learned=True)
            read = int(np.isfinite(records.log_prob).sum()) - known
        self.uplink.measure(work.texts, records, traffic)
        right, answered = correct(work, records)
        return Routed(
            [*before.records, records],
            before.traffic + traffic,
            before.correct + right,
            before.answered + answered,
            [*before.rows, rows],
            before.read + read,
        )

    def policy(self, parameters: FloatArray) -> Policy:
        """The routing policy of the settings, with learned parameters (float64 [d])."""
        kind = self.settings.policy
        if kind in ("always", "never"):
            return FixedPolicy(kept=kind == "always")
        if kind == "random":
            return RandomPolicy(self.settings.random_share)
        if kind == "router":
            return RouterPolicy(parameters, router_model(self.settings).score)
        return ThresholdPolicy(float(parameters[0]), kind)


def feedback_of(routed: Routed, settings: Settings) -> Feedback:
    """What the device may learn from: uncertainties, and beta where the LLM has told it.

    Measurements made for the report alone are left out.
    """
    parts = []
    for number, records in enumerate(routed.records):
        rows, steps = np.nonzero(records.present)
        at = (rows, steps)
        loss, ratio = records.loss(settings.shared_draw)[at], records.ratio_beta()[at]
        known = np.isfinite(loss) & np.isfinite(ratio) & ~records.measured_only[at]
        kept, weight = records.kept[at], np.ones(len(rows))
        if settings.audit_rate > 0:
            # An audited kept token stands for 1 / rate of them. Free feedback tells of further
            # ones, but which ones depends on what came later: it would tip the scales.
            known &= ~kept | records.audited[at]
            weight[kept] = 1 / settings.audit_rate
        parts.append(
            Feedback.create(
                u=np.clip(records.uncertainty[at], 0, 1),
                beta=np.where(known, loss, 0.0),
                ratio_beta=np.where(known, ratio, 0.0),
                kept=kept,
                known=known,
                weight=weight,
                prompt=rows + (number << 20),
                below=known & (ratio > 0),
                features=None if records.features is None else records.features[at],
            )
        )
    return Feedback.concatenate(parts)


def calibration_feedback(routed: Routed, settings: Settings) -> Feedback:
    """What a guarantee may rest on: the whole prompts of the first batch, each once."""
    if routed.calibration is None:
        return Feedback.empty()
    first = replace(routed, records=routed.records[:1])
    feedback = feedback_of(first, settings)
    return feedback.select(np.asarray(routed.calibration)[feedback.prompt])


def sampling_of(settings: Settings) -> Sampling:
    """How tokens are drawn."""
    return Sampling(settings.decoding, settings.temperature, settings.top_p)


def shared_seed(settings: Settings) -> int:
    """Seed the LLM draws with: the device's in sampled decoding; 0, "none", saves bytes."""
    return settings.seed + 1 if settings.decoding == "sampled" else 0


def items_of(settings: Settings) -> Items:
    """The dataset of the settings, read once per process."""
    return load_items(
        settings.dataset,
        cast(Split, settings.dataset_split),
        text_column=settings.text_columns,
        label_column=settings.label_column,
    )


def end_tokens(model: torch.nn.Module) -> frozenset[int]:
    """Tokens that end a text, from the model's generation config."""
    found: int | list[int] | None = model.generation_config.eos_token_id  # type: ignore[union-attr, assignment]
    if found is None:
        return frozenset()
    return frozenset([found] if isinstance(found, int) else found)


def uncertainty_of(settings: Settings) -> UncertaintyMeasure:
    """The uncertainty measure of the settings."""
    temperature, samples = settings.uncertainty_temperature, settings.uncertainty_samples

    def closed_form(logits: torch.Tensor, draft: torch.Tensor, keys: DrawKeys) -> torch.Tensor:
        return uncertainty.closed_form(logits, draft, temperature)

    def disagreement(logits: torch.Tensor, draft: torch.Tensor, keys: DrawKeys) -> torch.Tensor:
        draws = uniforms(keys, Purpose.UNCERTAINTY, samples)
        return uncertainty.disagreement(logits, draft, temperature, draws)

    def sweep(logits: torch.Tensor, draft: torch.Tensor, keys: DrawKeys) -> torch.Tensor:
        draws = uniforms(keys, Purpose.UNCERTAINTY, samples)
        return uncertainty.temperature_sweep(logits, draft, draws)

    def entropy(logits: torch.Tensor, draft: torch.Tensor, keys: DrawKeys) -> torch.Tensor:
        return uncertainty.entropy(logits)

    measures: dict[str, UncertaintyMeasure] = {
        "closed-form": closed_form,
        "disagreement": disagreement,
        "temperature-sweep": sweep,
        "entropy": entropy,
    }
    return measures[settings.uncertainty]
