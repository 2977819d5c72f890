"""A small model with its policy, its verifier and its way to the LLM, made from settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from clients.decoding.drafting import RouterConfig, UncertaintyMeasure
from clients.decoding.routing import Router, StepListener
from clients.decoding.spans import SpanRouting
from clients.decoding.steps import Runtime
from clients.policy import FixedPolicy, Policy, RandomPolicy, RouterPolicy, ThresholdPolicy
from clients.records import Stage, TextBatch, TokenRecords, Traffic
from clients.resolvers.measuring import read_unseen
from clients.resolvers.messages import UplinkConfig
from clients.resolvers.span_uplink import SpanUplink
from clients.resolvers.uplink import LanguageModelUplink
from fedhlm_app.client.edge import EdgeSide, has_edge
from fedhlm_app.client.take_back import span_costs, take_back
from fedhlm_app.client.verifiers import verifier_of
from fedhlm_app.learning.router import router_columns, router_features, router_model
from fedhlm_app.models.small import end_tokens, load_small, vocabulary_of
from fedhlm_app.settings import Settings
from hlm.arrays import Array, FloatArray, IntArray
from hlm.measures import MEASURES
from hlm.randomness import DrawKeys, Purpose, uniform_matrix, uniforms
from hlm.sampling import Sampling
from hlm.transport import Transport
from hlm.verification import Verifier


class RoutedModel:
    """Routed inference of one client: the same whether its texts come from data or from users.

    Parameters
    ----------
    settings : Settings
        Of the run.
    client : int
        Number of the device.
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
        edge_link: Callable[[int], Transport] | None = None,
    ) -> None:
        self.settings = settings
        self.client = client
        self.sampling = sampling_of(settings)
        # What needs more than a `Runtime` has been refused.
        self.model = cast(Any, load_small(settings))
        lean = isinstance(self.model, Runtime)
        self.verifier: Verifier = verifier_of(settings)
        common = UplinkConfig(
            client=client,
            vocab=vocabulary_of(self.model),
            sampling=self.sampling,
            seed=shared_seed(settings),
            feedback=settings.free_feedback,
        )
        self.uplink: LanguageModelUplink
        self.spans: SpanRouting | None = None
        if settings.streams:
            window = span_costs(settings).window
            self.uplink = streams = SpanUplink(transport, self.verifier, common, window)
            self.spans = SpanRouting(take_back(settings), streams)
        else:
            self.uplink = LanguageModelUplink(transport, self.verifier, common)
        self.edge: EdgeSide | None = None
        if has_edge(settings):
            if edge_link is None:
                raise ValueError("cache-mode, peer-mode: the edge tier needs a link to the edge")
            self.edge = EdgeSide(settings, client, self.model, edge_link)
        routed = settings.policy == "router"
        self.config = RouterConfig(
            sampling=self.sampling,
            uncertainty=uncertainty_of(settings, lean=lean),
            seed=settings.seed + 1,
            client=client,
            end_tokens=end_tokens(self.model),
            audit_rate=settings.audit_rate,
            features=router_features(settings, self.model) if routed else None,
            feature_count=router_columns(settings).count if routed else 0,
        )

    def route(
        self,
        policy: Policy,
        texts: TextBatch,
        amount: int | IntArray,
        *,
        reading: bool = False,
        learning: bool = True,
        measuring: bool = True,
        drafting: bool = True,
        on_step: StepListener | None = None,
    ) -> tuple[TokenRecords, Traffic, IntArray]:
        """Continue texts, or route the tokens of given ones.

        Parameters
        ----------
        policy : Policy
            Keeps or escalates.
        texts : TextBatch
            Grows in place unless `given`.
        amount : int or numpy.ndarray
            Most new tokens of a text; for given texts int64 [rows], the first routed positions.
        reading : bool
            The LLM reads kept tokens as well, and the device learns from what it says.
        learning : bool
            Caches and peers may remember these texts.
        measuring : bool
            The LLM reads the other tokens too, for a report alone.
        drafting : bool
            Draft as well where the LLM writes every token, for whoever learns or reports.
        on_step : callable, optional
            Called once a step is decided, see `Router`.

        Returns
        -------
        TokenRecords, Traffic, numpy.ndarray
            The tokens, what crossed the links, and of how many kept tokens of each text `reading`
            told, int64 [rows].
        """
        tiers = [] if self.edge is None else self.edge.resolvers
        cache = self.edge.cache if learning and self.edge is not None else None

        def decided(
            records: TokenRecords, rows: IntArray, steps: IntArray, traffic: Traffic
        ) -> None:
            if cache is not None:
                tokens, stages = records.token[rows, steps], records.stage[rows, steps]
                cache.inferred(tokens[stages == Stage.LOCAL])
            if on_step is not None:
                on_step(records, rows, steps, traffic)

        spans = None if self.spans is None else replace(self.spans, drafts=drafting)
        router = Router(
            self.model,
            self.config,
            policy,
            self.verifier,
            [*tiers, self.uplink],
            on_step=decided,
            learning=learning,
            spans=spans,
        )
        traffic = Traffic()
        if isinstance(amount, int):
            records = router.generate(texts, amount, traffic)
        else:
            records = router.score(texts, amount, traffic)
        known = (records.draft_choice >= 0).sum(axis=1)
        if reading:
            read_unseen(self.uplink.sender, texts, records, traffic, learned=True)
        read = (records.draft_choice >= 0).sum(axis=1) - known
        if measuring:
            read_unseen(self.uplink.sender, texts, records, traffic)
        return records, traffic, read

    def heard(self, counts: Sequence[float]) -> None:
        """Take texts back as the last round's counts of all clients tell (`take_back`)."""
        if self.spans is not None:
            self.spans = replace(self.spans, rule=take_back(self.settings, counts))

    def policy(self, arrays: Mapping[str, FloatArray]) -> Policy:
        """The routing policy of the settings, with what was learned, by name."""
        kind = self.settings.policy
        if kind in ("always", "never"):
            return FixedPolicy(kept=kind == "always")
        if kind == "random":
            return RandomPolicy(self.settings.random_share)
        threshold = float(arrays["threshold"][0])
        if kind == "router":
            return RouterPolicy(threshold, arrays["router"], router_model(self.settings).score)
        return ThresholdPolicy(threshold, kind)


def sampling_of(settings: Settings) -> Sampling:
    """How tokens are drawn."""
    return Sampling(settings.decoding, settings.temperature, settings.top_p)


def shared_seed(settings: Settings) -> int:
    """Seed the LLM draws with: the device's in sampled decoding; 0, "none", saves bytes."""
    return settings.seed + 1 if settings.decoding == "sampled" else 0


def uncertainty_of(settings: Settings, *, lean: bool = False) -> UncertaintyMeasure:
    """The uncertainty measure of the settings; `lean` measures numpy arrays (`hlm.lean`)."""
    kind = MEASURES[settings.uncertainty]
    function = kind.load("hlm.lean" if lean else "hlm.uncertainty")
    draws = uniform_matrix if lean else uniforms

    def measure(logits: Array, draft: Array, keys: DrawKeys) -> Array:
        given: dict[str, Any] = {"draft": draft, "temperature": settings.uncertainty_temperature}
        if "uniforms" in kind.takes:
            given["uniforms"] = draws(keys, Purpose.UNCERTAINTY, settings.uncertainty_samples)
        return function(logits, **{name: given[name] for name in kind.takes})

    return measure
