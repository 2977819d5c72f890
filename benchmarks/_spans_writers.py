"""The sides of `benchmarks/spans.py --wire`: who writes the same texts, and in what time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np
from scipy.stats import binom

from benchmarks._teacher_forced import pair_name
from clients.decoding.drafting import RouterConfig
from clients.decoding.routing import Router
from clients.decoding.spans import SpanRouting
from clients.policy import FixedPolicy, ThresholdPolicy
from clients.records import TextBatch, TokenRecords, Traffic
from clients.resolvers.messages import UplinkConfig
from clients.resolvers.span_uplink import SpanUplink
from clients.resolvers.uplink import LanguageModelUplink
from fedhlm_app.client.inference import sampling_of, uncertainty_of
from fedhlm_app.compare.contender import LanguageModelAlone, Recorder
from fedhlm_app.compare.methods import METHODS
from fedhlm_app.data.workload import WorkloadBatch
from fedhlm_app.estimate.recording import Recorded
from fedhlm_app.models.load import load_llm, load_slm
from fedhlm_app.settings import Settings
from hlm.arrays import IntArray
from hlm.channels import Link
from hlm.spans import SpanCosts, count_runs, learned
from hlm.transport import Transport
from hlm.verification import VERIFIERS

Write = Callable[[TextBatch, int], tuple[TokenRecords, Traffic]]
"""Continues a text by so many tokens."""
WARM_TOKENS = 10
LEAST_SECONDS, MOST_SECONDS = 6.0, 15.0
"""How long plain streaming and spans are written in a cell, in turns."""
SHARP = 0.03
"""Width of the interval of their ratio below which `LEAST_SECONDS` are enough."""


@dataclass(frozen=True)
class Cell:
    """One LLM pace, link and budget, and what is followed there."""

    budget: float
    threshold: float
    costs: SpanCosts
    link: Link


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


class Writers:
    """The sides, over any transport.

    Parameters
    ----------
    tokens : int
        Of a text.
    fitted : Recorded
        What rules learn from.
    """

    def __init__(self, tokens: int, fitted: Recorded) -> None:
        settings = Settings.from_sources({}, {})
        self.tokens, self.fitted = tokens, fitted
        self.slm, self.llm = load_slm(pair_name("slm")), load_llm(pair_name("llm"))
        self.config = RouterConfig(
            sampling_of(settings), uncertainty_of(settings), 1, 0, frozenset()
        )
        vocab = int(self.slm.config.get_text_config().vocab_size)
        self.common = UplinkConfig(0, vocab, self.config.sampling)
        self._sessions = count(1)

    def sides(self, transport: Transport, cell: Cell) -> dict[str, Write]:
        """Plain streaming, one token at a time, and spans."""
        drafter = VERIFIERS["greedy"]()
        reader = Router(self.llm, self.config, FixedPolicy(True), drafter, [])
        recorder = (
            transport
            if isinstance(transport, Recorder)
            else Recorder(transport, time.perf_counter, [cell.link])
        )
        alone = LanguageModelAlone(METHODS["llm"], reader, self.common, recorder)

        def streamed(texts: TextBatch, tokens: int) -> tuple[TokenRecords, Traffic]:
            return alone.streamed(WorkloadBatch(texts, tokens, texts.lengths.copy(), None))

        def routed(router: Router) -> Write:
            def write(texts: TextBatch, tokens: int) -> tuple[TokenRecords, Traffic]:
                traffic = Traffic()
                return router.generate(texts, tokens, traffic), traffic

            return write

        policy = ThresholdPolicy(cell.threshold)
        counts = count_runs(self.fitted.uncertainty <= cell.threshold)
        rule = learned(counts, cell.costs, self.tokens)
        one = LanguageModelUplink(transport, drafter, self.common)
        streams = SpanUplink(transport, drafter, self.common, cell.costs.window)
        spans = SpanRouting(rule, streams, drafts=False)
        return {
            "plain": streamed,
            "token": routed(Router(self.slm, self.config, policy, drafter, [one])),
            "spans": routed(Router(self.slm, self.config, policy, drafter, [streams], spans=spans)),
        }

    def write(
        self, transport: Transport, cell: Cell, prompts: Sequence[IntArray]
    ) -> dict[str, Written]:
        """Every side's texts, in turns, again and again until the comparison is sharp.

        One token at a time is written once where it is far behind. Seconds are those of the
        recorder, if the transport is one; else they have passed.
        """
        sides = self.sides(transport, cell)
        for side in sides.values():  # opens connections, and warms up
            self._timed(transport, side, prompts[0], WARM_TOKENS)
        found = {name: Written() for name in sides}
        for repetition in count():
            order = [name for name in sides if name != "token" or not found[name].behind(found)]
            seconds = dict.fromkeys(order, 0.0)
            for number, prompt in enumerate(prompts):
                first = (repetition + number) % len(order)
                for name in order[first:] + order[:first]:
                    took, records, crossed = self._timed(
                        transport, sides[name], prompt, self.tokens
                    )
                    seconds[name] += took
                    found[name].traffic.include(crossed)
                    found[name].kept += int(records.kept.sum())
                    if not repetition:
                        found[name].texts.append(records.token[0].tolist())
            for name in order:
                found[name].seconds.append(seconds[name])
            passed = sum(found["plain"].seconds) + sum(found["spans"].seconds)
            _, low, high = middle(found["spans"].faster_than(found["plain"]))
            sharp = passed > LEAST_SECONDS and high - low < SHARP
            if repetition and (sharp or passed > MOST_SECONDS):
                return found

    def _timed(
        self, transport: Transport, side: Write, prompt: IntArray, tokens: int
    ) -> tuple[float, TokenRecords, Traffic]:
        texts = TextBatch([prompt], np.array([next(self._sessions)]), room=tokens)
        if isinstance(transport, Recorder):
            transport.clear()
        begin = time.perf_counter()
        records, crossed = side(texts, tokens)
        seconds = time.perf_counter() - begin
        if isinstance(transport, Recorder):
            seconds = float(transport.took().times.now[0])
        return seconds, records, crossed


def middle(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, and two of the values between which it lies with a chance of 95 %.

    Of fewer than six the lowest and the highest, which is less.
    """
    ordered = sorted(values)
    outer = max(1, int(binom.ppf(0.025, len(ordered), 0.5)))
    return float(np.median(ordered)), ordered[outer - 1], ordered[-outer]
