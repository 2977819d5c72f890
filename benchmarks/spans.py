"""Streamed spans against the LLM streaming alone: ``python -m benchmarks.spans``.

Over recorded uncertainties of 500 articles (AG News, or the built-in corpus): thresholds and the
take-back rule are fitted on one half and judged on the other, in each cell of LLM pace and round
trip. Speeds are against the LLM streaming its own text. Takes seconds, after half a minute of
recording the first time.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from benchmarks._report import write_report
from benchmarks._spans_recorded import AHEAD, cells, markdown, recorded, verdict


def recorded_part(options: argparse.Namespace) -> dict[str, Any]:
    """Simulated speeds over recorded drafts."""
    name, found = recorded(options.texts, options.tokens)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--slm-ms", type=float, default=5.0, help="time of a draft")
    parser.add_argument("--window", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = {"options": vars(options), "recorded": recorded_part(options)}
    print(write_report("spans", figures))


if __name__ == "__main__":
    main()
