"""Streamed spans against the LLM streaming alone: ``python -m benchmarks.spans``.

Over recorded uncertainties of 500 articles (AG News, or the built-in corpus): thresholds and the
take-back rule are fitted on one half and judged on the other, in each cell of LLM pace and round
trip. Speeds are against the LLM streaming its own text. Takes seconds, after half a minute of
recording the first time. With ``--wire`` a few texts are also decoded in real time, over
`hlm.channels` and over a slow wire between two network namespaces (root, Linux).
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from benchmarks._report import write_report
from benchmarks._spans_recorded import AHEAD, CELL, cells, markdown, recorded, verdict


def recorded_part(options: argparse.Namespace) -> dict[str, Any]:
    """Simulated speeds over recorded drafts."""
    name, _, found = recorded(options.texts, options.tokens)
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


def wire_part(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measured speeds over `hlm.channels` and a slow wire; a line as each is known."""
    from benchmarks._spans_wire import in_real_time, table

    _, prompts, found = recorded(options.texts, options.tokens)
    rows = []
    columns = ("tokens_per_second", "speed", "to_best", "kept", "decoded", "bytes", "messages")
    print("wire, budget, LLM ms, round trip ms, way:", *columns)
    for row in in_real_time(found, prompts, options):
        rows.append(row)
        head = (row["wire"], *(f"{row[name]:g}" for name in CELL), row["way"])
        print(*head, *(f"{row[name]:.2f}" for name in columns), flush=True)
    print(f"\n{table(rows)}\n")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--slm-ms", type=float, default=5.0, help="time of a draft")
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--wire", action="store_true", help="also in real time: ten minutes")
    parser.add_argument("--wire-prompts", type=int, default=3)
    parser.add_argument("--wire-tokens", type=int, default=30)
    parser.add_argument("--paces", type=float, nargs="+", default=[0, 20, 40, 80], help="0: own")
    parser.add_argument("--round-trips", type=float, nargs="+", default=[5, 30, 60])
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.10, 0.05])
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = {"options": vars(options), "recorded": recorded_part(options)}
    if options.wire:
        figures["real_time"] = wire_part(options)
    print(write_report("spans", figures))


if __name__ == "__main__":
    main()
