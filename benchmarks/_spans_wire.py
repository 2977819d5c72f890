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

from benchmarks._pair import pair_settings, server_words
from benchmarks._spans_recorded import CELL
from benchmarks._spans_writers import Cell, Writers, Written, middle
from fedhlm_app.compare.contender import Recorder
from fedhlm_app.estimate.recording import Recorded
from fedhlm_app.transport.transports import DirectTransport
from hlm.arrays import BoolArray, IntArray
from hlm.channels import LINKS
from hlm.risk import conformal_threshold, risk_sums, threshold_grid
from hlm.spans import SpanCosts, best_course, spent
from servers.backend import Feed
from servers.engine.engine import Engine
from servers.llm import LanguageModelService


def certified(fitted: Recorded, budget: float) -> float:
    """Threshold whose expected risk is certified to be at most `budget`, given the LLM's texts."""
    rows, _ = np.nonzero(fitted.present)
    grid = threshold_grid()
    u, wrong = fitted.uncertainty[fitted.present], fitted.wrong[fitted.present].astype(float)
    sums = risk_sums(u, wrong, rows, grid)
    return conformal_threshold(sums.risk, sums.prompts, grid, budget)


LIKELY = 32
"""Texts, typical as recorded, among which those are looked for that are typical as written."""


def typical(sure: BoolArray, texts: int) -> IntArray:
    """Texts whose sure drafts are nearest to the mean in share and in number of runs, int64 [n].

    What a take-back can win is a matter of runs. Of the same share, but with short runs, two texts
    have .98 of the LLM alone where all together have 1.06.
    """
    runs = sure[:, 0] + (sure[:, 1:] & ~sure[:, :-1]).sum(axis=1)
    both = np.column_stack([sure.mean(axis=1), runs])
    far = np.abs(both - both.mean(axis=0)) / both.std(axis=0)
    return np.argsort(far.sum(axis=1), kind="stable")[:texts]


def typical_texts(
    writers: Writers, threshold: float, prompts: IntArray, recorded: Recorded, texts: int
) -> tuple[IntArray, BoolArray]:
    """Prompts of a cell, int64 [texts, tokens], and where their recorded drafts are sure.

    Typical along the LLM's own text, which is `recorded` of each of `prompts`, and in the text with
    all sure drafts kept: what spans write is one of these or between.
    """
    sure = recorded.uncertainty[:, : writers.tokens] <= threshold
    likely = typical(sure, LIKELY)
    chosen = likely[typical(writers.sure(prompts[likely], threshold), texts)]
    return prompts[chosen], sure[chosen]


def rows(
    wire: str, cell: Cell, found: dict[str, Written], costs: SpanCosts
) -> Iterator[dict[str, Any]]:
    """One line for each side: speed against the others, `to_best` against the best course."""
    tokens = sum(map(len, found["plain"].texts))
    best_ms = float(spent(best_course(cell.sure, costs), costs).ms.sum())
    for name, side in found.items():
        seconds, written = float(np.median(side.seconds)), tokens * len(side.seconds)
        crossed = side.traffic
        yield {
            "wire": wire,
            "budget": cell.budget,
            "threshold": cell.threshold,
            "llm_ms": cell.llm_ms,
            "round_trip_ms": 1000 * cell.link.round_trip_s,
            "way": name,
            "measured": [costs.llm_ms, costs.slm_ms, costs.round_trip_ms, costs.beside_ms],
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
    """Cells as the table of `docs/spans.md`; the paces; who loses where."""
    of = {(row["wire"], *(row[name] for name in CELL), row["way"]): row for row in found}
    columns = sorted({key[:2] for key in of}, key=lambda column: (-column[1], column[0]))
    head = [
        f"{budget:g}: {'channels' if wire == 'channels' else 'slow wire'}"
        for wire, budget in columns
    ]
    lines = [
        "| " + " | ".join(("LLM, ms", "round trip, ms", *head)) + " |",
        "|---:" * 2 + "|---" * len(columns) + "|",
    ]
    lost = []
    for llm, trip in sorted({key[2:4] for key in of}):
        pace, shown = f"{llm:g}" if llm else "own", []
        for wire, budget in columns:
            cell = (wire, budget, llm, trip)
            if (*cell, "spans") not in of:
                shown.append("")
                continue
            token, spans = of[*cell, "token"]["speed"][0], of[*cell, "spans"]
            (speed, low, high), (to_token, _, most) = spans["speed"], spans["to_token"]
            decoded = spans["decoded"]
            shown.append(f"{token:.2f} / {speed:.3f} ± {(high - low) / 2:.3f}, {decoded:.2f}")
            # What is noise is no loss: a ratio must be below 1 beyond its interval as well.
            wrong = {
                f"{speed:.3f} of the speed of streaming": speed < 0.98 and high < 1,
                f"{to_token:.3f} of one token at a time": to_token < 0.98 and most < 1,
                f"{decoded:.3f} tokens decoded": decoded > 1.05,
            }
            name = f"{wire}, {budget:g}, LLM {pace}, round trip {trip:g} ms"
            lost += [f"{name}: {word}" for word, holds in wrong.items() if holds]
        lines.append("| " + " | ".join((pace, f"{trip:g}", *shown)) + " |")
    return "\n".join([*lines, "", *timed(found), *alike(found), *(lost or ["no cell loses"])])


def timed(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What rules were made for: the least and the most that was measured, by wire and LLM."""
    spans = [row for row in found if row["way"] == "spans"]
    for wire, pace in sorted({(row["wire"], row["llm_ms"]) for row in spans}):
        here = [row for row in spans if (row["wire"], row["llm_ms"]) == (wire, pace)]
        paces = np.array([row["measured"] for row in here])
        # What a round trip takes beyond the wire's own: bytes, and the server's work for it.
        paces[:, 2] -= [row["round_trip_ms"] for row in here]
        names = ("a token", "a draft", "a request beyond the round trip", "a draft's hold-up")
        words = zip(names, paces.T, strict=True)
        told = (f"{name} {each.min():.1f} to {each.max():.1f} ms" for name, each in words)
        yield f"{wire}, LLM {pace:g}: " + ", ".join(told)


def alike(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Cells in which nothing is taken back, together: both sides read the same streams there."""
    of = {(row["wire"], *(row[name] for name in CELL), row["way"]): row for row in found}
    for wire in sorted({key[0] for key in of}):
        pairs = [
            (of[*cell, "plain"]["seconds"], row["seconds"])
            for (*cell, way), row in of.items()
            if cell[0] == wire and way == "spans" and not row["kept"]
        ]
        ratios = [a / b for plain, spans in pairs for a, b in zip(plain, spans, strict=False)]
        if ratios:
            speed, low, high = middle(ratios)
            yield (
                f"{wire}: in {len(pairs)} cells nothing is taken back: together "
                f"{speed:.3f} ({low:.3f} to {high:.3f}) of the speed of streaming"
            )


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


def over_channels(writers: Writers, cell: Cell) -> tuple[dict[str, Written], SpanCosts]:
    """A cell over `hlm.channels`, with an LLM in this process."""
    engine = ToldPace(writers.llm, 16, 128, pace=cell.llm_ms / 1000)
    transport = DirectTransport(LanguageModelService(engine))
    return writers.write(Recorder(transport, engine.clock, [cell.link]), cell)


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
    settings = pair_settings(options)
    writers = Writers(settings, options.wire_tokens, fitted, options.window)
    thresholds = {budget: certified(fitted, budget) for _, _, budget in options.cells}
    texts = {
        budget: typical_texts(writers, threshold, prompts[1::2], tested, options.wire_prompts)
        for budget, threshold in thresholds.items()
    }
    kind = next((kind for kind in ("netem", "tun") if not why_not(kind)), None)
    if kind is None:
        print(f"over hlm.channels alone: {why_not('tun')}")
    links = {1000 * link.round_trip_s: link for link in LINKS}
    for pace, chosen_cells in groupby(options.cells, lambda cell: cell[0]):
        missing: dict[str, list[Cell]] = {"channels": []}
        if kind is not None:
            missing[kind] = []
        for _, trip, budget in chosen_cells:
            cell = Cell(budget, thresholds[budget], pace, links[trip], *texts[budget])
            for wire, cells in missing.items():
                if (wire, budget, pace, trip) not in known:
                    cells.append(cell)
        for cell in missing["channels"]:
            yield from rows("channels", cell, *over_channels(writers, cell))
        if kind is None or not missing[kind]:
            continue
        words = ["--pace-ms", f"{pace:g}", *server_words(settings)]
        with two_namespaces(kind) as network, served_llm(network, *words):
            for cell in missing[kind]:
                with network.joined(cell.link):

                    def act(cell: Cell = cell) -> tuple[dict[str, Written], SpanCosts]:
                        transport = HttpTransport(f"{FAR}:{PORT}", timeout=60)
                        try:
                            return writers.write(transport, cell)
                        finally:
                            transport.close()

                    yield from rows(kind, cell, *network.within(act))
