"""Streamed spans against the LLM streaming alone: ``python -m benchmarks.spans``.

Over recorded uncertainties of 500 articles (AG News, or the built-in corpus): thresholds and the
take-back rule are fitted on one half and judged on the other, in each cell of LLM pace and round
trip. Speeds are against the LLM streaming its own text. Takes seconds, after half a minute of
recording the first time. With ``--wire`` a few texts are also decoded, over `hlm.channels` and, in
real time, over a slow wire between two network namespaces (root, Linux): some twenty minutes, cell
by cell; a run that was broken off goes on with the cells that it lacks.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks._pair import add_pair_options, pair_settings
from benchmarks._report import write_report
from benchmarks._spans_recorded import (
    AHEAD,
    BUDGETS,
    CELL,
    ROUND_TRIPS_MS,
    cells,
    markdown,
    recorded,
    verdict,
)
from benchmarks._teacher_forced import CACHE
from fedhlm_app.models.sources import BUILTIN

CELLS = tuple(product((80.0, 40.0, 20.0, 0.0), ROUND_TRIPS_MS, BUDGETS))
"""LLM paces and round trips in ms, 0 being the built-in LLM's own pace, and budgets."""


def recorded_part(options: argparse.Namespace) -> dict[str, Any]:
    """Simulated speeds over recorded drafts."""
    name, _, found = recorded(pair_settings(options), options.texts, options.tokens)
    fitted, tested = found.halves()
    rows = list(cells(fitted, tested, options.slm_ms, options.window))
    ways = ["certain", *(f"learned-{ahead}" for ahead in AHEAD)]
    verdicts = {way: verdict(rows, way) for way in ways}
    texts, tokens = found.uncertainty.shape
    print(f"{name}: {texts} texts of {tokens} tokens, a draft takes {options.slm_ms:g} ms\n")
    print(markdown(rows), end="\n\n")
    for way, words in verdicts.items():
        print(f"{way:10s}", ", ".join(f"{key} {value:g}" for key, value in words.items()))
    return {"data": name, "texts": texts, "cells": rows, "verdicts": verdicts}


def cell(text: str) -> tuple[float, ...]:
    """One of `CELLS` as it is written on the command line."""
    known = {"/".join(f"{value:g}" for value in one): one for one in CELLS}
    if text not in known:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: {' '.join(known)}")
    return known[text]


def wire_part(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measured speeds over `hlm.channels` and a slow wire; a line as each is known."""
    from benchmarks._spans_wire import in_real_time, table

    _, prompts, found = recorded(pair_settings(options), options.texts, options.tokens)
    names = options.slm, options.llm, options.device, options.dtype
    words = [Path(name).name for name in names] * (names != (BUILTIN, BUILTIN, "cpu", "float32"))
    size = f"{options.wire_prompts}x{options.wire_tokens}"
    path = CACHE / f"spans-measured-{'-'.join([size, *words])}.jsonl"
    if options.anew:
        path.unlink(missing_ok=True)
    rows = [json.loads(line) for line in path.open()] if path.exists() else []
    columns = ("tokens_per_second", "speed", "to_best", "kept", "decoded", "bytes", "messages")
    print("wire, budget, LLM ms, round trip ms, way:", *columns)
    known = {(row["wire"], *(row[name] for name in CELL)) for row in rows}
    for row in in_real_time(found, prompts, options, known):
        rows.append(row)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        head = (row["wire"], *(f"{row[name]:g}" for name in CELL), row["way"])
        figures = (row[name] for name in columns)
        shown = (figure if isinstance(figure, float) else figure[0] for figure in figures)
        print(*head, *(f"{figure:.3f}" for figure in shown), flush=True)
    print(f"\n{table(rows)}\n")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--slm-ms", type=float, default=5.0, help="time of a draft")
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--wire", action="store_true", help="also in real time: twenty minutes")
    parser.add_argument("--wire-prompts", type=int, default=2)
    parser.add_argument("--wire-tokens", type=int, default=30)
    parser.add_argument(
        "--cells",
        type=cell,
        nargs="+",
        default=CELLS,
        metavar="LLM/TRIP/BUDGET",
        help="of --wire, as 80/5/0.1: ms of the LLM (0: its own) and of a round trip; all cells",
    )
    parser.add_argument("--anew", action="store_true", help="forget cells of --wire that were run")
    add_pair_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = {"options": vars(options), "recorded": recorded_part(options)}
    if options.wire:
        figures["real_time"] = wire_part(options)
    print(write_report("spans", figures))


if __name__ == "__main__":
    main()
