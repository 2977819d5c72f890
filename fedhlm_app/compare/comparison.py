"""The comparison: one pair, one set of prompts, one seed, every method.

Methods take turns prompt by prompt, so that a machine that is busy for a while is busy for all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from clients.block_uplink import BlockUplink
from clients.decoding.drafting import RouterConfig
from clients.decoding.routing import Router
from clients.decoding.spans import SpanRouting
from clients.decoding.speculative import SpeculativeDecoder
from clients.policy import FixedPolicy, Policy, RandomPolicy, ThresholdPolicy
from clients.records import TokenRecords, Traffic
from clients.resolvers.measuring import read_unseen
from clients.resolvers.messages import UplinkConfig
from clients.resolvers.span_uplink import SpanUplink
from clients.resolvers.uplink import LanguageModelUplink
from fedhlm_app.client.inference import sampling_of, shared_seed, uncertainty_of
from fedhlm_app.client.take_back import span_costs
from fedhlm_app.client.verifiers import verifier_of
from fedhlm_app.compare.calibration import Calibration, calibrate
from fedhlm_app.compare.contender import (
    Clock,
    Contender,
    LanguageModelAlone,
    Recorder,
    RoutedMethod,
    Speculative,
)
from fedhlm_app.compare.methods import Method
from fedhlm_app.data.chats import check_chats
from fedhlm_app.data.dataset import items_of
from fedhlm_app.data.items import Items
from fedhlm_app.data.prompts import Workload
from fedhlm_app.data.workload import BatchMaker
from fedhlm_app.hosting.pairs import check_pair, with_ids_of_slm
from fedhlm_app.models.load import load_llm, load_slm
from fedhlm_app.models.small import end_tokens
from fedhlm_app.models.torch_names import torch_device, torch_dtype
from fedhlm_app.models.vocabulary import load_tokenizer, one_tokenizer
from fedhlm_app.settings import Settings
from fedhlm_app.transport.transports import DirectTransport
from hlm.channels import LINKS, Link
from hlm.ranges import require_between
from hlm.spans import learned
from hlm.verification import VERIFIERS, Verifier, plain_verifier
from servers.engine.engine import Engine, context_limit
from servers.llm import LanguageModelService

SESSIONS = 16
"""Texts that the engine of a method keeps at a time; accuracy is taken in batches of so many."""

CALIBRATION_CLIENT = 1
_SCORE_SESSIONS, _LABEL_SESSIONS = 1 << 20, 1 << 21

Listener = Callable[[str, int, int], None]
"""Told what is going on, and how many of how many steps of it are done."""


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes
    ----------
    methods : sequence of Method
        In the order of the result.
    prompts, calibration_prompts : int
        Number of each, >= 1; no item is in both.
    tokens : int
        Most routed tokens of a prompt, >= 1.
    share : float
        Share of tokens to escalate where a method leaves it free, in [0, 1].
    workload : {"generate", "score", "classify"}
        What tokens, bytes and times are of.
    equal_share : bool
        Hold methods with a threshold of their own (U-HLM's line) to `share` as well.
    risk_prone : bool
        Their risk-prone threshold instead of the risk-averse one.
    draft_tokens : int
        Most drafts in one message of `speculative`, >= 1.
    accuracy : bool
        Also take token accuracy (`score`) and label accuracy (`classify`) of the same items.
    links : sequence of Link
        Over which speeds are told, at least one.
    llm_ms : float
        Least time of a forward pass of the LLM, from 0: a small one stands in for a large one.
    clock : callable
        Measures compute, in s: wall time, unless a benchmark on a busy machine asks for processor
        time.
    """

    methods: Sequence[Method]
    prompts: int = 32
    calibration_prompts: int = 32
    tokens: int = 24
    share: float = 0.25
    workload: Workload = "generate"
    equal_share: bool = False
    risk_prone: bool = False
    draft_tokens: int = 4
    accuracy: bool = True
    links: Sequence[Link] = LINKS
    llm_ms: float = 0.0
    clock: Clock = time.perf_counter

    def __post_init__(self) -> None:
        require_between("llm_ms", self.llm_ms, 0.0, 60_000.0)
        for name in ("prompts", "calibration_prompts", "tokens", "draft_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: allowed are values from 1")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share = {self.share}: allowed are values in [0, 1]")


@dataclass
class Comparison:
    """Everything that the methods share.

    Parameters
    ----------
    settings : Settings
        Decoding, temperature, top-p, uncertainty, truncation, prompt length and seed are used.
    plan : Plan
        What is compared.
    slm, llm : transformers.PreTrainedModel
        The pair.
    tokenizer : transformers.PreTrainedTokenizerBase
        The small model's.
    items : Items
        Texts, at least prompts + calibration prompts.

    Raises
    ------
    ValueError
        When there are too few items.
    """

    settings: Settings
    plan: Plan
    slm: PreTrainedModel
    llm: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    items: Items
    calibration: Calibration = field(init=False)

    def __post_init__(self) -> None:
        wanted = self.plan.prompts + self.plan.calibration_prompts
        if len(self.items) < wanted:
            raise ValueError(
                f"prompts = {self.plan.prompts} and calibration prompts = "
                f"{self.plan.calibration_prompts}: the dataset has {len(self.items)} items"
            )
        order = np.random.default_rng(self.settings.seed).permutation(len(self.items))[:wanted]
        self._rows, self._calibration_rows = np.split(order, [self.plan.prompts])
        self._sampling = sampling_of(self.settings)
        self._greedy = self._sampling.decoding == "greedy"

    @classmethod
    def of(cls, settings: Settings, plan: Plan) -> Self:
        """The comparison of the settings' pair on the settings' dataset.

        Raises
        ------
        ValueError
            When models, tokenizer or texts cannot work together.
        """
        check_pair(settings)
        items, tokenizer = items_of(settings), load_tokenizer(settings.slm)
        check_chats(items, settings, "score" if plan.accuracy else "generate")
        if not one_tokenizer(settings.slm, settings.llm):
            # Right tokens are those of given texts, of which the LLM has other ones.
            plan = replace(plan, accuracy=False)
        slm = load_slm(settings.slm, torch_dtype(settings.dtype), torch_device(settings.device))
        llm = load_llm(
            settings.llm,
            torch_dtype(settings.llm_dtype),
            torch_device(settings.llm_device, "llm-device"),
        )
        return cls(settings, plan, slm, llm, tokenizer, items)

    def run(
        self,
        listen: Listener = lambda what, done, total: None,
        calibration: Calibration | None = None,
    ) -> list[dict[str, Any]]:
        """Calibrate, run every method, and return one result for each.

        Parameters
        ----------
        listen : callable
            Told of progress.
        calibration : Calibration, optional
            Of an equal comparison of other methods, instead of an own one.
        """
        listen("calibrating", 0, 1)
        self.calibration = self._calibrate() if calibration is None else calibration
        contenders = [self._contender(method) for method in self.plan.methods]
        warm_up = self._maker(self.plan.workload)
        for contender in contenders:
            contender.make(
                warm_up.make(self._calibration_rows[:1], np.array([0]), 2), counted=False
            )
        for done, row in enumerate(self._rows):
            listen("making texts", done, len(self._rows))
            for contender in contenders:
                work = self._maker(self.plan.workload).make(row[None], np.array([done + 1]))
                contender.make(work)
        if self.plan.accuracy:
            self._take_accuracy(contenders, listen)
        return [self._result(contender) for contender in contenders]

    def _result(self, contender: Contender) -> dict[str, Any]:
        method = contender.method
        head: dict[str, Any] = {"method": method.name, "exact": method.exact(self._greedy)}
        return {**head, **contender.tally.figures()}

    def _take_accuracy(self, contenders: Sequence[Contender], listen: Listener) -> None:
        kinds: list[tuple[Workload, int]] = [("score", _SCORE_SESSIONS)]
        if self.items.label_names and not self.items.chat:
            kinds.append(("classify", _LABEL_SESSIONS))
        for workload, first in kinds:
            maker = self._maker(workload)
            for begin in range(0, len(self._rows), SESSIONS):
                listen(f"accuracy ({workload})", begin, len(self._rows))
                rows = self._rows[begin : begin + SESSIONS]
                for contender in contenders:
                    work = maker.make(rows, first + begin + np.arange(len(rows)))
                    contender.answer(workload, work)

    def _maker(self, workload: Workload) -> BatchMaker:
        return BatchMaker(
            self.items, self.tokenizer, workload, self.settings.prompt_tokens, self.plan.tokens
        )

    def _contender(self, method: Method) -> Contender:
        if method.name == "llm":
            router = Router(
                self.llm, self._config(0, method.measure), FixedPolicy(True), self._plain(), []
            )
            config = self._uplink_config(0, feedback=False)
            return LanguageModelAlone(method, router, config, self._recorder())
        routed = self._routed(method, self._policy(method), 0)
        return self._speculative(routed) if method.name == "speculative" else routed

    def _speculative(self, routed: RoutedMethod) -> Speculative:
        """The same with a decoder that drafts in blocks."""
        verifier, recorder = routed.router.verifier, routed.recorder
        uplink = BlockUplink(recorder, self._plain(), routed.uplink.config)
        decoder = SpeculativeDecoder(self.slm, routed.router.config, uplink, self.plan.draft_tokens)
        router = Router(self.slm, routed.router.config, FixedPolicy(False), verifier, [uplink])
        return Speculative(decoder, routed.method, router, uplink, recorder)

    def _routed(self, method: Method, policy: Policy, client: int) -> RoutedMethod:
        verifier = self._plain()
        if not self._greedy:
            # The texts of the calibration itself are made without a line.
            truncated = method.verifier.startswith("truncated")
            line = self.calibration.draft_line if truncated else None
            verifier = verifier_of(self.settings, method.verifier, line)
        recorder, spans = self._recorder(), None
        config = self._uplink_config(client, method.free_feedback)
        uplink: LanguageModelUplink
        if method.spans:
            costs = span_costs(self.settings)
            uplink = streams = SpanUplink(recorder, verifier, config, costs.window)
            rule = learned(self.calibration.runs[method.measure], costs, self.plan.tokens)
            spans = SpanRouting(rule, streams, drafts=False)
        else:
            uplink = LanguageModelUplink(recorder, verifier, config)
        router_config = self._config(client, method.measure)
        router = Router(self.slm, router_config, policy, verifier, [uplink], spans=spans)
        return RoutedMethod(method, router, uplink, recorder)

    def _recorder(self) -> Recorder:
        """A way to an LLM server of its own."""
        context = min(self.settings.llm_context, context_limit(self.llm))
        engine = Engine(self.llm, SESSIONS, context, pace=self.plan.llm_ms / 1000)
        backend = with_ids_of_slm(self.settings, engine)
        transport = DirectTransport(LanguageModelService(backend))
        return Recorder(transport, self.plan.clock, self.plan.links)

    def _uplink_config(self, client: int, feedback: bool) -> UplinkConfig:
        return UplinkConfig(
            client=client,
            vocab=int(self.slm.config.get_text_config().vocab_size),
            sampling=self._sampling,
            seed=shared_seed(self.settings),
            feedback=feedback,
            # Only FedHLM asks for it; the others' papers have no such byte.
            draft_feedback=feedback,
        )

    def _plain(self) -> Verifier:
        return VERIFIERS[plain_verifier(self._sampling.decoding)]()

    def _config(self, client: int, measure: str) -> RouterConfig:
        measured = self.settings.model_copy(update={"uncertainty": measure})
        return RouterConfig(
            self._sampling,
            uncertainty_of(measured),
            self.settings.seed + 1,
            client,
            end_tokens(self.slm),
        )

    def _policy(self, method: Method) -> Policy:
        if method.escalates in ("nothing", "everything"):
            return FixedPolicy(kept=method.escalates == "nothing")
        if method.escalates == "at random":
            return RandomPolicy(self.plan.share)
        if method.escalates == "above its line" and not self.plan.equal_share:
            line = self.calibration.line
            return ThresholdPolicy(line.risk_prone if self.plan.risk_prone else line.risk_averse)
        return self.calibration.policies[method.measure]

    def _calibrate(self) -> Calibration:
        maker = self._maker(self.plan.workload)

        def route(policy: Policy, measure: str) -> TokenRecords:
            method = Method(
                "calibration", "", "above the share", measure=measure, free_feedback=True
            )
            routed = self._routed(method, policy, CALIBRATION_CLIENT)
            routed.router.config = replace(routed.router.config, client=CALIBRATION_CLIENT)
            rows = self._calibration_rows
            work = maker.make(rows, np.arange(len(rows)))
            traffic = Traffic()
            if work.texts.given:
                records = routed.router.score(work.texts, work.first, traffic)
            else:
                records = routed.router.generate(work.texts, work.new_tokens, traffic)
            read_unseen(routed.uplink.sender, work.texts, records, traffic)
            return records

        measures: set[str] = {method.measure for method in self.plan.methods}
        measures.add("temperature-sweep")
        return calibrate(route, self.plan.share, tuple(sorted(measures)), self._greedy)
