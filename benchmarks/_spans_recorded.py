"""Spans over recorded uncertainties: every way of writing the same texts, and what it would take.

Recorded are the device's drafts along the LLM's own greedy text, once, and cached.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby, product
from typing import Any

import numpy as np

from benchmarks._pair import digest_of, load_models, start_token
from benchmarks._teacher_forced import CACHE, corpus
from clients.decoding.drafting import RouterConfig
from fedhlm_app.client.inference import sampling_of, uncertainty_of
from fedhlm_app.estimate.recording import Recorded, alone, record
from fedhlm_app.settings import Settings
from hlm.arrays import IntArray
from hlm.spans import (
    SpanCosts,
    TakeBack,
    best_course,
    certain,
    count_runs,
    course,
    learned,
    spent,
    token_course,
)

PROMPT_TOKENS = 16

BUDGETS = (0.10, 0.05)
"""Shares of tokens that may be kept and wrong."""
PACES_MS = (8.5, 20.0, 40.0, 80.0)
ROUND_TRIPS_MS = (5.0, 30.0, 60.0)
AHEAD = (1, 4)
"""Most drafts that a learned rule may look at."""
CELL = ("budget", "llm_ms", "round_trip_ms")


def recorded(settings: Settings, texts: int, tokens: int) -> tuple[str, IntArray, Recorded]:
    """Name of the data, prompts, and what was recorded on them; cached under ``benchmarks/out``.

    The LLM goes on from the first `PROMPT_TOKENS` tokens of an article by its likeliest token, past
    any end; the device's model reads along. Articles that are shorter are left out.

    Parameters
    ----------
    settings
        Of the pair.
    texts
        Articles, at most.
    tokens
        Positions that are recorded of each.
    """
    name, rows = corpus("validation", 0)
    pair = load_models(settings)
    tokenizer: Any = pair.tokenizer
    start = start_token(tokenizer)
    encoded = tokenizer([text for _, text in rows], add_special_tokens=False)["input_ids"]
    long = [[start, *ids[: PROMPT_TOKENS - 1]] for ids in encoded if len(ids) >= PROMPT_TOKENS - 1]
    order = np.random.default_rng(0).permutation(len(long))[:texts]
    prompts = np.array([long[index] for index in order])
    key = digest_of(pair[:2], prompts.tobytes(), str(tokens).encode())
    path = CACHE / f"spans-{key}.npz"
    if not path.exists():
        config = RouterConfig(sampling_of(settings), uncertainty_of(settings), 1, 0, frozenset())
        CACHE.mkdir(parents=True, exist_ok=True)
        np.savez(
            path, **vars(record(pair.slm, alone(pair.llm, config), list(prompts), tokens, config))
        )
    with np.load(path) as stored:
        return name, prompts, Recorded(**stored)


def cells(
    fitted: Recorded, tested: Recorded, slm_ms: float, window: int
) -> Iterator[dict[str, float | str]]:
    """Every way to write the tested texts, in each cell of budget, LLM pace and round trip.

    ``speed`` is against the LLM alone, ``to_best`` against `hlm.spans.best_course`, ``decoded`` and
    ``overshoot`` in tokens for each one that the LLM alone would decode.
    """
    tokens = tested.uncertainty.shape[1]
    for budget in BUDGETS:
        threshold = fitted.threshold(budget)
        counts = count_runs(fitted.uncertainty <= threshold)
        sure = tested.uncertainty <= threshold
        for llm_ms, round_trip_ms in product(PACES_MS, ROUND_TRIPS_MS):
            costs = SpanCosts(llm_ms, slm_ms, round_trip_ms, window)
            ways = {"token": token_course(sure), "best": best_course(sure, costs)}
            rules: dict[str, TakeBack] = {"certain": certain(costs, max(AHEAD))}
            rules |= {f"learned-{n}": learned(counts, costs, tokens, n) for n in AHEAD}
            ways |= {name: course(sure, rule) for name, rule in rules.items()}
            sides = {name: spent(way, costs) for name, way in ways.items()}
            for name, side in sides.items():
                yield {
                    "budget": budget,
                    "threshold": threshold,
                    "llm_ms": llm_ms,
                    "round_trip_ms": round_trip_ms,
                    "way": name,
                    "speed": costs.plain(tokens) / float(side.ms.mean()),
                    "to_best": float(sides["best"].ms.mean() / side.ms.mean()),
                    "kept": float(side.kept.mean()) / tokens,
                    "requests": float(side.requests.mean()),
                    "decoded": float(side.decoded.mean()) / tokens,
                    "overshoot": float(side.overshoot.mean()) / tokens,
                    "drafts": float(side.drafts.mean()) / tokens,
                }


def verdict(rows: Sequence[dict[str, float | str]], way: str) -> dict[str, bool | int | float]:
    """What one way comes to over all cells, and whether it holds what is asked of it."""
    own = [row for row in rows if row["way"] == way]
    token = [row for row in rows if row["way"] == "token"]
    near = Counter(row["budget"] for row in own if float(row["to_best"]) >= 0.95)
    slowest = min(float(row["speed"]) for row in own)
    most_decoded = max(float(row["decoded"]) for row in own)
    slower_than_token = sum(
        float(a["speed"]) < float(b["speed"]) for a, b in zip(own, token, strict=True)
    )
    return {
        "slowest": slowest,
        "most_decoded": most_decoded,
        "slower_than_token": slower_than_token,
        "near_best": min(near[budget] for budget in BUDGETS),
        "holds": slowest >= 0.98
        and most_decoded <= 1.05
        and not slower_than_token
        and min(near[budget] for budget in BUDGETS) >= 9,
    }


def markdown(rows: Sequence[dict[str, float | str]]) -> str:
    """The cells as a table for docs: speeds, and the figures of the rule that looks farthest."""
    chosen = f"learned-{max(AHEAD)}"
    speeds = ["token", "certain", *(f"learned-{ahead}" for ahead in AHEAD), "best"]
    figures = ["to_best", "kept", "decoded", "overshoot", "drafts"]
    head = ["budget", "LLM, ms", "round trip, ms", *speeds, *figures]
    lines = ["| " + " | ".join(head) + " |", "|---:" * len(head) + "|"]
    for _, group in groupby(rows, lambda row: [row[name] for name in CELL]):
        of = {row["way"]: row for row in group}
        cells = [f"{of[chosen][name]:g}" for name in CELL]
        cells += [f"{of[way]['speed']:.2f}" for way in speeds]
        cells += [f"{of[chosen][name]:.2f}" for name in figures]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
