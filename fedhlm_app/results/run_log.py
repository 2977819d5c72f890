"""What a run says in Flower's log, as `flwr run --stream` shows it: a line a round, the result."""

from __future__ import annotations

from collections.abc import Mapping
from logging import INFO
from typing import Any

from flwr.common.logger import log

from fedhlm_app.results.report.rows import text_lines
from fedhlm_app.results.report.verdict import lacking, meanwhile, threshold


def log_round(line: Mapping[str, Any], rounds: int) -> None:
    """Say in one line what came of a round.

    Parameters
    ----------
    line : mapping
        The round's line of `metrics.jsonl`.
    rounds : int
        Of the whole run.
    """
    tokens, resolution = line["tokens"], line["resolution"]
    asked = resolution["llm_accepted"] + resolution["llm_resampled"]
    share = asked / tokens if tokens else 0.0
    log(
        INFO,
        "Round %d/%d: %s tokens of %d clients, %.1f%% asked the LLM, threshold %s, %.1f s",
        line["round"],
        rounds,
        f"{tokens:,}",
        line["replies"],
        100 * share,
        threshold(line["threshold"]["global"]),
        line["seconds"],
    )
    found = line.get("guarantee")
    if found is not None and not found["certified"]:
        log(INFO, "Nothing is certified yet: %s; %s", lacking(found), meanwhile(found))


def log_result(summary: Mapping[str, Any], folder: object) -> None:
    """Say what came of a run: the result table, and where the rest of it is."""
    log(INFO, "Result")
    for line in text_lines(summary):
        log(INFO, "  %s", line)
    log(INFO, "Run folder: %s", folder)
