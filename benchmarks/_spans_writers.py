"""The sides of `benchmarks/spans.py --wire`: who writes the same texts, and in what time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np
from scipy.stats import binom

from benchmarks._pair import load_models
from clients.decoding.drafting import RouterConfig
from clients.decoding.routing import Router
from clients.decoding.spans import SpanRouting
from clients.policy import FixedPolicy, ThresholdPolicy
from clients.records import TextBatch, TokenRecords, Traffic
from clients.resolvers.link import Link as DeviceLink
from clients.resolvers.messages import UplinkConfig
from clients.resolvers.span_uplink import SpanUplink
from clients.resolvers.stream import Spans
from clients.resolvers.uplink import LanguageModelUplink
from fedhlm_app.client.inference import sampling_of, uncertainty_of
from fedhlm_app.compare.contender import LanguageModelAlone, Recorder
from fedhlm_app.compare.methods import METHODS
from fedhlm_app.data.workload import WorkloadBatch
from fedhlm_app.estimate.recording import Recorded
from fedhlm_app.settings import Settings
from fedhlm_app.transport.transports import DirectTransport
from hlm.arrays import BoolArray, IntArray
from hlm.channels import Link
from hlm.spans import NEVER, SpanCosts, TakeBack, count_runs, learned
from hlm.transport import Transport
from hlm.verification import VERIFIERS
from servers.engine.engine import Engine
from servers.llm import LanguageModelService

Write = Callable[[TextBatch, int], tuple[TokenRecords, Traffic]]
"""Continues a text by so many tokens."""
WARM_TOKENS = 10
LEAST_SECONDS, MOST_SECONDS = 6.0, 30.0
"""How long plain streaming and spans are written in a cell, in turns."""
SHARP = 0.03
"""Width of the interval of their ratio below which `LEAST_SECONDS` are enough."""
TIMED, TIMED_SECONDS = 3, 8.0
"""How often and how long the paces of a cell are taken, at least."""


@dataclass(frozen=True)
class Cell:
    """One LLM pace, link and budget, and the texts that are written there.

    Attributes
    ----------
    budget, threshold : float
        Share of tokens that may be kept and wrong, and the threshold certified for it.
    llm_ms : float
        Pace that the LLM keeps, in ms; 0: its own.
    link : Link
    prompts : int64 [texts, tokens]
    sure : bool [texts, positions]
        Where the recorded drafts of these texts are sure.
    """

    budget: float
    threshold: float
    llm_ms: float
    link: Link
    prompts: IntArray
    sure: BoolArray


@dataclass
class Written:
    """What one side took for the same texts, repeated.

    Attributes
    ----------
    seconds : list of float
        Of all texts together, by repetition.
    texts : list of list of int
        Of the first one.
    kept, traffic : int, Traffic
        Of all.
    """

    seconds: list[float] = field(default_factory=list)
    texts: list[list[int]] = field(default_factory=list)
    kept: int = 0
    traffic: Traffic = field(default_factory=Traffic)

    def faster_than(self, other: Written) -> list[float]:
        """The other's seconds over these, by repetition."""
        pairs = zip(other.seconds, self.seconds, strict=False)  # one may have been written less
        return [theirs / own for theirs, own in pairs]

    def behind(self, found: dict[str, Written]) -> bool:
        """Whether it is known to be slower than spans by more than a tenth."""
        return any(ratio > 1.1 for ratio in found["spans"].faster_than(self))


@dataclass(frozen=True)
class Timed:
    """One text, and what it took, in all and of the device's work."""

    seconds: float
    device_seconds: float
    records: TokenRecords
    traffic: Traffic


class Writers:
    """The sides, over any transport.

    Parameters
    ----------
    settings : Settings
        Of the pair.
    tokens : int
        Of a text.
    fitted : Recorded
        What rules learn from.
    window : int
        Tokens that the server may be ahead of the device.
    """

    def __init__(self, settings: Settings, tokens: int, fitted: Recorded, window: int) -> None:
        self.tokens, self.fitted, self.window = tokens, fitted, window
        self.slm, self.llm, _ = load_models(settings)
        self.config = RouterConfig(
            sampling_of(settings), uncertainty_of(settings), 1, 0, frozenset()
        )
        vocab = int(self.slm.config.get_text_config().vocab_size)
        self.common = UplinkConfig(0, vocab, self.config.sampling)
        self._sessions = count(1)

    def sides(self, transport: Transport, cell: Cell) -> dict[str, Write]:
        """Plain streaming, and one token at a time."""
        recorder = (
            transport
            if isinstance(transport, Recorder)
            else Recorder(transport, time.perf_counter, [cell.link])
        )
        drafter = VERIFIERS["greedy"]()
        reader = Router(self.llm, self.config, FixedPolicy(True), drafter, [])
        alone = LanguageModelAlone(METHODS["llm"], reader, self.common, recorder)
        # Over a real wire the other sides have no recorder either.
        alone.spans = Spans(DeviceLink(transport, "llm"))

        def streamed(texts: TextBatch, tokens: int) -> tuple[TokenRecords, Traffic]:
            return alone.streamed(WorkloadBatch(texts, tokens, texts.lengths.copy(), None))

        one = LanguageModelUplink(transport, drafter, self.common)
        return {"plain": streamed, "token": self._writer(self._router(cell.threshold, one))}

    def streams(
        self, transport: Transport, cell: Cell, rule: TakeBack, drafts: bool = False
    ) -> Write:
        """Streams that are taken back by a rule; with `drafts` read along whatever it says."""
        uplink = SpanUplink(transport, VERIFIERS["greedy"](), self.common, self.window)
        routing = SpanRouting(rule, uplink, drafts)
        return self._writer(self._router(cell.threshold, uplink, routing))

    def sure(self, prompts: IntArray, threshold: float) -> BoolArray:
        """Where drafts are sure in texts written one token at a time, bool [texts, positions]."""
        service = LanguageModelService(Engine(self.llm, len(prompts), 128))
        uplink = LanguageModelUplink(DirectTransport(service), VERIFIERS["greedy"](), self.common)
        sessions = np.array([next(self._sessions) for _ in prompts])
        texts = TextBatch(list(prompts), sessions, room=self.tokens)
        records = self._router(threshold, uplink).generate(texts, self.tokens, Traffic())
        return records.sure

    def _router(
        self, threshold: float, uplink: LanguageModelUplink, spans: SpanRouting | None = None
    ) -> Router:
        policy, drafter = ThresholdPolicy(threshold), VERIFIERS["greedy"]()
        return Router(self.slm, self.config, policy, drafter, [uplink], spans=spans)

    def _writer(self, router: Router) -> Write:
        def write(texts: TextBatch, tokens: int) -> tuple[TokenRecords, Traffic]:
            traffic = Traffic()
            return router.generate(texts, tokens, traffic), traffic

        return write

    def measured(
        self, transport: Transport, sides: dict[str, Write], cell: Cell
    ) -> tuple[SpanCosts, SpanCosts]:
        """Paces and round trip as this transport has them, from writing the first text anew.

        Told are the medians, and the quartiles that speak against reading along.

        A streamed token takes what a longer text of plain streaming takes more than a shorter one,
        a draft the device's part of a text written one token at a time, and a round trip the rest
        of that, for each request, without the LLM's step. What a draft beside the stream holds it
        up is what the same text takes more if the device reads along, less its first draft.
        """
        along = self.streams(transport, cell, NEVER, drafts=True)
        paces, written, further = [], 0.0, self.tokens - 1
        while len(paces) < TIMED or written < TIMED_SECONDS:
            timed = [
                self._timed(transport, side, cell.prompts[0], tokens)
                for side, tokens in (
                    (sides["plain"], WARM_TOKENS),
                    (sides["plain"], self.tokens),
                    (along, self.tokens),
                    (sides["token"], self.tokens),
                )
            ]
            written += sum(one.seconds for one in timed)
            short, whole, read, token = timed
            llm = (whole.seconds - short.seconds) / (self.tokens - WARM_TOKENS)
            slm = token.device_seconds / self.tokens
            asked = (token.seconds - token.device_seconds) / token.traffic.messages
            paces.append((llm, slm, asked - llm, (read.seconds - whole.seconds - slm) / further))
        found = []
        for parts in ([0.5] * 4, [0.25, 0.75, 0.75, 0.75]):
            each = zip(np.transpose(paces), parts, strict=True)
            llm, slm, trip, beside = (1000 * float(np.quantile(one, part)) for one, part in each)
            found.append(SpanCosts(llm, slm, max(trip, 0.0), self.window, max(beside, 0.0)))
        return found[0], found[1]

    def rule(self, cell: Cell, costs: SpanCosts, dear: SpanCosts) -> TakeBack:
        """The rule for the medians and the dear quartiles of the costs.

        Whether to read along is decided by the dear ones: what that saves is a few hundredths where
        the paces themselves differ by tenths from one text to the next. How to read along is not:
        a dear request speaks against one token at a time, and for streams.
        """
        counts = count_runs(self.fitted.uncertainty <= cell.threshold)
        if learned(counts, dear, self.tokens) is NEVER:
            return NEVER
        return learned(counts, costs, self.tokens)

    def write(self, transport: Transport, cell: Cell) -> tuple[dict[str, Written], SpanCosts]:
        """Every side's texts, in turns, again and again until the comparison is sharp.

        One token at a time is written once where it is far behind. Seconds are those of the
        recorder, if the transport is one; else they have passed. Told, too, are the medians of the
        costs for which the rule of the spans was made.
        """
        sides = self.sides(transport, cell)
        for side in sides.values():  # opens connections, and warms up
            self._timed(transport, side, cell.prompts[0], WARM_TOKENS)
        costs, dear = self.measured(transport, sides, cell)
        sides["spans"] = self.streams(transport, cell, self.rule(cell, costs, dear))
        self._timed(transport, sides["spans"], cell.prompts[0], WARM_TOKENS)
        found = {name: Written() for name in sides}
        for repetition in count():
            order = [name for name in sides if name != "token" or not found[name].behind(found)]
            seconds = dict.fromkeys(order, 0.0)
            for number, prompt in enumerate(cell.prompts):
                first = (repetition + number) % len(order)
                for name in order[first:] + order[:first]:
                    one = self._timed(transport, sides[name], prompt, self.tokens)
                    seconds[name] += one.seconds
                    found[name].traffic.include(one.traffic)
                    found[name].kept += int(one.records.kept.sum())
                    if not repetition:
                        found[name].texts.append(one.records.token[0].tolist())
            for name in order:
                found[name].seconds.append(seconds[name])
            passed = sum(found["plain"].seconds) + sum(found["spans"].seconds)
            _, low, high = middle(found["spans"].faster_than(found["plain"]))
            sharp = passed > LEAST_SECONDS and high - low < SHARP
            if repetition and (sharp or passed > MOST_SECONDS):
                return found, costs

    def _timed(self, transport: Transport, side: Write, prompt: IntArray, tokens: int) -> Timed:
        texts = TextBatch([prompt], np.array([next(self._sessions)]), room=tokens)
        if isinstance(transport, Recorder):
            transport.clear()
        begin = time.perf_counter()
        records, crossed = side(texts, tokens)
        seconds, device = time.perf_counter() - begin, crossed.slm
        if isinstance(transport, Recorder):
            took = transport.took()
            seconds, device = float(took.times.now[0]), took.device_seconds
        return Timed(seconds, device, records, crossed)


def middle(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, and two of the values between which it lies with a chance of 95 %.

    Of fewer than six the lowest and the highest, which is less.
    """
    ordered = sorted(values)
    outer = max(1, int(binom.ppf(0.025, len(ordered), 0.5)))
    return float(np.median(ordered)), ordered[outer - 1], ordered[-outer]
