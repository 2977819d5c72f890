"""Lookups per second and memory of the edge server's index, by number of entries.

Run ``python -m benchmarks.edge``; figures go to ``benchmarks/out/edge.json``. Entries are sketches
around real contexts (the pair's hidden states on the corpus) with a few bits flipped, so that
they bunch as they do in use; questions are entries with 3 % of their bits flipped. A batch has 32
questions. ``--entries 1000 100000`` limits the sizes, ``--words 1 4`` takes longer keys as well,
``--articles 100`` spares a larger pair most of the reading.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks._pair import add_pair_options, load_models, pair_settings
from benchmarks._report import write_report
from benchmarks._teacher_forced import corpus, forced
from hlm.peers.agreement import SketchMaker, distance_of_cosine, hamming
from servers.edge.index import HAS_FAISS, IndexSize, SketchIndex

BATCH = 32
BATCHES = 40
NEIGHBOURS = 32
GATE = 0.98
"""`context-gate`, as its default is."""

Sketches = NDArray[np.uint8]


def flipped(sketches: Sketches, share: float, random: np.random.Generator) -> Sketches:
    """The sketches with a share of their bits flipped at random."""
    noise = np.empty_like(sketches)
    for begin in range(0, len(sketches), 65_536):
        part = sketches[begin : begin + 65_536]
        bits = random.random((len(part), 8 * part.shape[1]), dtype=np.float32) < share
        noise[begin : begin + len(part)] = part ^ np.packbits(bits, axis=1)
    return noise


def measure(base: Sketches, entries: int, random: np.random.Generator) -> dict[str, Any]:
    """Figures of an index of one size."""
    keys = flipped(base[random.integers(len(base), size=entries)], 0.03, random)
    resident = psutil.Process().memory_info().rss
    index = SketchIndex(base.shape[1], IndexSize(capacity=entries, quota=entries))
    begin = time.perf_counter()
    for start in range(0, entries, 4096):
        part = keys[start : start + 4096]
        numbers = np.arange(start, start + len(part))
        index.add(part, numbers % 20, numbers % 4096, np.ones(len(part), np.bool_))
    filling = time.perf_counter() - begin
    resident = psutil.Process().memory_info().rss - resident
    chosen = random.integers(entries, size=(BATCHES, BATCH))
    questions = [flipped(keys[rows], 0.03, random) for rows in chosen]
    index.nearest(questions[0], NEIGHBOURS)
    seconds, found = [], []
    computing = time.process_time()
    for batch in questions:
        begin = time.perf_counter()
        found.append(index.nearest(batch, NEIGHBOURS))
        seconds.append(time.perf_counter() - begin)
    computing = time.process_time() - computing
    recall = [
        _recall(batch[:8], keys, near.distances[:8])
        for batch, near in zip(questions[:8], found[:8], strict=True)
    ]
    return {
        "key_bytes": base.shape[1],
        "entries": len(index),
        "batch_ms": {
            "median": 1e3 * float(np.median(seconds)),
            "p95": 1e3 * float(np.quantile(seconds, 0.95)),
            # All threads together: what it takes where nothing else wants the cores.
            "processor": 1e3 * computing / len(questions),
        },
        "lookups_per_second": BATCH / float(np.median(seconds)),
        "fill_entries_per_second": entries / filling,
        "memory_bytes": index.memory,
        "memory_bytes_per_entry": index.memory / len(index),
        # With Python's own tables of who holds what; too coarse to be told for a small index.
        "resident_bytes_per_entry": resident / len(index) if entries >= 100_000 else None,
        "recall_past_gate": float(np.mean(recall)),
    }


def _recall(questions: Sketches, keys: Sketches, distances: NDArray[np.int64]) -> float:
    """Share of the entries past the gate, at most the 32 nearest, that were found."""
    gate = distance_of_cosine(GATE, 8 * keys.shape[1])
    exact = np.sort(hamming(questions, keys), axis=1)[:, :NEIGHBOURS]
    wanted = (exact <= gate).sum()
    # Equal distances are interchangeable, so counting those past the gate is enough.
    return float((distances <= gate).sum() / wanted) if wanted else 1.0


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    parser.add_argument("--words", type=int, nargs="+", default=[1])
    parser.add_argument("--articles", type=int, default=1500)
    add_pair_options(parser)
    options = parser.parse_args(arguments)
    name, rows = corpus("validation", options.articles)
    hidden = forced(rows, load_models(pair_settings(options))).hidden
    random = np.random.default_rng(0)
    sizes = []
    for words in options.words:
        base, usable = SketchMaker(hidden.shape[1], 64 * words).sketch(hidden)
        for entries in options.entries:
            figures = measure(base[usable], entries, random)
            print(figures, flush=True)
            sizes.append(figures)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    report = {
        "options": vars(options),
        "load_average": load,
        "contexts": name,
        "faiss": HAS_FAISS,
        "batch": BATCH,
        "sizes": sizes,
    }
    print(write_report("edge", report))


if __name__ == "__main__":
    main()
