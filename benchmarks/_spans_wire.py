"""Spans decoded over `hlm.channels`, and in real time over a slow wire of two namespaces.

The LLM keeps a pace (`servers.engine`), so that the built-in one stands in for larger ones. Every
side writes the same prompts, one at a time, in turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, groupby
from typing import Any

import numpy as np

from benchmarks._spans_recorded import CELL
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
from fedhlm_app.transport.transports import DirectTransport
from hlm.arrays import IntArray
from hlm.channels import LINKS, Link
from hlm.risk import conformal_threshold, risk_sums, threshold_grid
from hlm.spans import SpanCosts, best_course, count_runs, learned, spent
from hlm.transport import Transport
from hlm.verification import VERIFIERS
from servers.backend import Feed
from servers.engine.engine import Engine
from servers.llm import LanguageModelService

Write = Callable[[TextBatch], tuple[TokenRecords, Traffic]]
"""Continues a text."""
OWN_MS = 8.5
"""What a rule takes the built-in LLM's own pace for."""


@dataclass(frozen=True)
class Cell:
    """One LLM pace, link and budget, and what is followed there."""

    budget: float
    threshold: float
    costs: SpanCosts
    link: Link


def certified(fitted: Recorded, budget: float) -> float:
    """Threshold whose expected risk is certified to be at most `budget`, given the LLM's texts."""
    rows, _ = np.nonzero(fitted.present)
    grid = threshold_grid()
    u, wrong = fitted.uncertainty[fitted.present], fitted.wrong[fitted.present].astype(float)
    sums = risk_sums(u, wrong, rows, grid)
    return conformal_threshold(sums.risk, sums.prompts, grid, budget)


def typical(tested: Recorded, threshold: float, prompts: int) -> IntArray:
    """Texts whose share of sure drafts is nearest to that of all, int64 [prompts]."""
    share = (tested.uncertainty <= threshold).mean(axis=1)
    return np.argsort(np.abs(share - share.mean()), kind="stable")[:prompts]


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

        def streamed(texts: TextBatch) -> tuple[TokenRecords, Traffic]:
            return alone.streamed(WorkloadBatch(texts, self.tokens, texts.lengths.copy(), None))

        def routed(router: Router) -> Write:
            def write(texts: TextBatch) -> tuple[TokenRecords, Traffic]:
                traffic = Traffic()
                return router.generate(texts, self.tokens, traffic), traffic

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
    ) -> dict[str, dict[str, Any]]:
        """Every side's texts, in turns: seconds, tokens kept and decoded, messages and bytes.

        Seconds are those of the recorder, if the transport is one; else they have passed.
        """
        sides = self.sides(transport, cell)
        names = list(sides)
        found: dict[str, Any] = {name: {"seconds": 0.0, "kept": 0, "texts": []} for name in names}
        traffic = {name: Traffic() for name in names}
        for number, prompt in enumerate([prompts[0], *prompts]):
            for name in names[number % 3 :] + names[: number % 3]:
                texts = TextBatch([prompt], np.array([next(self._sessions)]), room=self.tokens)
                if isinstance(transport, Recorder):
                    transport.clear()
                begin = time.perf_counter()
                records, crossed = sides[name](texts)
                seconds = time.perf_counter() - begin
                if isinstance(transport, Recorder):
                    seconds = float(transport.took().times.now[0])
                if number == 0:
                    continue  # opens connections, and warms up
                found[name]["seconds"] += seconds
                found[name]["kept"] += int(records.kept.sum())
                found[name]["texts"].append(records.token[0].tolist())
                traffic[name].include(crossed)
        for name in names:
            crossed = traffic[name]
            found[name] |= {
                "messages": crossed.messages,
                "decoded": crossed.decoded,
                "overshot": crossed.overshot,
                "bytes": crossed.uplink + crossed.downlink,
            }
        return found


def rows(
    wire: str, cell: Cell, found: dict[str, dict[str, Any]], best_ms: float
) -> Iterator[dict[str, Any]]:
    """One line for each side: speed against plain streaming, `to_best` against the best course."""
    tokens = sum(map(len, found["plain"]["texts"]))
    for name, side in found.items():
        yield {
            "wire": wire,
            "budget": cell.budget,
            "threshold": cell.threshold,
            "llm_ms": cell.costs.llm_ms,
            "round_trip_ms": cell.costs.round_trip_ms,
            "way": name,
            "tokens_per_second": tokens / side["seconds"],
            "speed": found["plain"]["seconds"] / side["seconds"],
            "to_best": best_ms / 1000 / side["seconds"],
            **{key: side[key] / tokens for key in ("kept", "decoded", "overshot", "bytes")},
            "messages": side["messages"] / len(side["texts"]),
            "texts": side["texts"],
        }


def table(found: Sequence[dict[str, Any]]) -> str:
    """Cells of a wire as a table of speeds, the LLM streaming alone = 1, and who loses where."""
    head = ("wire", *CELL, "token", "spans", "best", "kept", "decoded by the LLM")
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    lost = []
    for cell, group in groupby(found, lambda row: [row["wire"], *(row[name] for name in CELL)]):
        of = {row["way"]: row for row in group}
        spans, token = of["spans"], of["token"]
        best = spans["speed"] / spans["to_best"]
        name = " | ".join(part if isinstance(part, str) else f"{part:g}" for part in cell)
        figures = token["speed"], spans["speed"], best, spans["kept"], spans["decoded"]
        lines.append(f"| {name} | " + " | ".join(f"{figure:.2f}" for figure in figures) + " |")
        wrong = {
            "slower than .98 of streaming": spans["speed"] < 0.98,
            # Where nothing is streamed both are the same messages.
            "slower than one token at a time": spans["speed"] < 0.98 * token["speed"],
            "more than 1.05 tokens decoded": spans["decoded"] > 1.05,
        }
        lost += [f"{name}: {word}" for word, holds in wrong.items() if holds]
    return "\n".join([*lines, "", *(lost or ["no cell loses"])])


class ToldPace(Engine):
    """Keeps its pace by a clock that is put forward, so that nobody waits."""

    forward = 0.0

    def score(self, feeds: Sequence[Feed]) -> list[Any]:
        """See `Engine.score`."""
        pace, self.pace, begin = self.pace, 0.0, time.perf_counter()
        found = super().score(feeds)
        self.pace = pace
        if any(len(feed.wanted) for feed in feeds):
            self.forward += max(0.0, pace - (time.perf_counter() - begin))
        return found

    def clock(self) -> float:
        """Seconds."""
        return time.perf_counter() + self.forward


def over_channels(writers: Writers, cell: Cell, prompts: Sequence[IntArray], pace: float) -> Any:
    """A cell over `hlm.channels`, with an LLM in this process."""
    engine = ToldPace(writers.llm, 16, 128, pace=pace / 1000)
    transport = DirectTransport(LanguageModelService(engine))
    return writers.write(Recorder(transport, engine.clock, [cell.link]), cell, prompts)


def in_real_time(
    recorded: Recorded,
    prompts: IntArray,
    options: Any,
    known: Collection[tuple[Any, ...]],
) -> Iterator[dict[str, Any]]:
    """Cells over both wires, pace by pace; `options` as of ``benchmarks/spans.py``.

    Parameters
    ----------
    recorded : Recorded
        Of the same articles.
    prompts : int64 [texts, tokens]
        Whose continuations were recorded.
    known : collection of tuple
        Wires and cells (`CELL`) that are left out.
    """
    # Network namespaces need root and Linux; the rest of the benchmark does not.
    from fedhlm_app.transport.http_transport import HttpTransport
    from tests.e2e.network import FAR, PORT, served_llm, two_namespaces, why_not

    fitted, tested = recorded.halves()
    writers = Writers(options.wire_tokens, fitted)
    kind = next((kind for kind in ("netem", "tun") if not why_not(kind)), None)
    if kind is None:
        print(f"over hlm.channels alone: {why_not('tun')}")
    links = {1000 * link.round_trip_s: link for link in LINKS}
    for pace, chosen_cells in groupby(options.cells, lambda cell: cell[0]):
        missing: dict[str, list[tuple[Cell, IntArray, float]]] = {"channels": []}
        if kind is not None:
            missing[kind] = []
        for _, trip, budget in chosen_cells:
            threshold = certified(fitted, budget)
            chosen = typical(tested, threshold, options.wire_prompts)
            costs = SpanCosts(pace or OWN_MS, options.slm_ms, trip, options.window)
            sure = tested.uncertainty[chosen, : options.wire_tokens] <= threshold
            best = float(spent(best_course(sure, costs), costs).ms.sum())
            cell = Cell(budget, threshold, costs, links[trip])
            for wire, cells in missing.items():
                if (wire, budget, costs.llm_ms, trip) not in known:
                    cells.append((cell, prompts[1::2][chosen], best))
        for cell, texts, best in missing["channels"]:
            yield from rows("channels", cell, over_channels(writers, cell, texts, pace), best)
        if kind is None or not missing[kind]:
            continue
        with two_namespaces(kind) as network, served_llm(network, "--pace-ms", f"{pace:g}"):
            for cell, texts, best in missing[kind]:
                with network.joined(cell.link):

                    def act(cell: Cell = cell, texts: IntArray = texts) -> Any:
                        transport = HttpTransport(f"{FAR}:{PORT}", timeout=60)
                        try:
                            return writers.write(transport, cell, texts)
                        finally:
                            transport.close()

                    yield from rows(kind, cell, network.within(act), best)
