"""Spans decoded over `hlm.channels`, and in real time over a slow wire of two namespaces.

The LLM keeps a pace (`servers.engine`), so that the built-in one stands in for larger ones. Every
side writes the same prompts, one at a time, in turns and repeatedly: speeds are medians of the
ratios of each repetition.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from benchmarks._spans_recorded import CELL
from benchmarks._spans_writers import Cell, Writers, Written, middle
from fedhlm_app.compare.contender import Recorder
from fedhlm_app.estimate.recording import Recorded
from fedhlm_app.transport.transports import DirectTransport
from hlm.arrays import IntArray
from hlm.channels import LINKS
from hlm.risk import conformal_threshold, risk_sums, threshold_grid
from hlm.spans import SpanCosts, best_course, spent
from servers.backend import Feed
from servers.engine.engine import Engine
from servers.llm import LanguageModelService

OWN_MS = 8.5
"""What a rule takes the built-in LLM's own pace for."""


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


def rows(
    wire: str, cell: Cell, found: dict[str, Written], best_ms: float
) -> Iterator[dict[str, Any]]:
    """One line for each side: speed against the others, `to_best` against the best course."""
    tokens = sum(map(len, found["plain"].texts))
    for name, side in found.items():
        seconds, written = float(np.median(side.seconds)), tokens * len(side.seconds)
        crossed = side.traffic
        yield {
            "wire": wire,
            "budget": cell.budget,
            "threshold": cell.threshold,
            "llm_ms": cell.costs.llm_ms,
            "round_trip_ms": cell.costs.round_trip_ms,
            "way": name,
            "repetitions": len(side.seconds),
            "tokens_per_second": tokens / seconds,
            "speed": middle(side.faster_than(found["plain"])),
            "to_token": middle(side.faster_than(found["token"])),
            "to_best": best_ms / 1000 / seconds,
            "kept": side.kept / written,
            "decoded": crossed.decoded / written,
            "overshot": crossed.overshot / written,
            "bytes": (crossed.uplink + crossed.downlink) / written,
            "messages": crossed.messages / len(side.texts) / len(side.seconds),
            "seconds": side.seconds,
            "texts": side.texts,
        }


def table(found: Sequence[dict[str, Any]]) -> str:
    """Cells of a wire as a table of speeds, the LLM streaming alone = 1, and who loses where."""
    head = (
        "wire", *CELL, "token", "spans", "between", "spans / token", "between", "best", "kept",
        "decoded by the LLM", "repetitions",
    )  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    lost, widest = [], 0.0
    for cell, group in groupby(found, lambda row: [row["wire"], *(row[name] for name in CELL)]):
        of = {row["way"]: row for row in group}
        spans, (speed, low, high) = of["spans"], of["spans"]["speed"]
        to_token, worst, most = spans["to_token"]
        widest = max(widest, (high - low) / 2)
        best = speed / spans["to_best"]
        name = " | ".join(part if isinstance(part, str) else f"{part:g}" for part in cell)
        figures = (
            f"{of['token']['speed'][0]:.2f}", f"{speed:.3f}", f"{low:.3f} to {high:.3f}",
            f"{to_token:.3f}", f"{worst:.3f} to {most:.3f}",
            *(f"{figure:.2f}" for figure in (best, spans["kept"], spans["decoded"])),
            f"{spans['repetitions']}",
        )  # fmt: skip
        lines.append(f"| {name} | " + " | ".join(figures) + " |")
        # What is noise is no loss: a ratio must be below 1 beyond its interval as well.
        wrong = {
            f"{speed:.3f} of the speed of streaming": speed < 0.98 and high < 1,
            f"{to_token:.3f} of one token at a time": to_token < 0.98 and most < 1,
            f"{spans['decoded']:.3f} tokens decoded": spans["decoded"] > 1.05,
        }
        lost += [f"{name}: {word}" for word, holds in wrong.items() if holds]
    noise = f"half of the widest interval against streaming: {widest:.3f}"
    return "\n".join([*lines, "", noise, *(lost or ["no cell loses"])])


class ToldPace(Engine):
    """Keeps its pace by a clock that is put forward, so that nobody waits.

    All work is this thread's, and its processor time is what counts: others on the machine do not.
    """

    forward = 0.0

    def score(self, feeds: Sequence[Feed]) -> list[Any]:
        """See `Engine.score`."""
        pace, self.pace, begin = self.pace, 0.0, time.thread_time()
        found = super().score(feeds)
        self.pace = pace
        if any(len(feed.wanted) for feed in feeds):
            self.forward += max(0.0, pace - (time.thread_time() - begin))
        return found

    def clock(self) -> float:
        """Seconds of work and pauses."""
        return time.thread_time() + self.forward


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
