"""When the devices of a run take a text back from the LLM, from settings and summed counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from fedhlm_app.client.routed import Figures, Routed
from fedhlm_app.learning.rules import sums_rule
from fedhlm_app.settings import Settings
from hlm.spans import (
    AT_ONCE,
    SpanCosts,
    TakeBack,
    certain,
    checked_counts,
    count_runs,
    learned,
)

RUN_COUNTS = tuple(
    f"drafts-{now}-{before}"
    for before in ("at-start", "after-unsure", "after-sure")
    for now in ("unsure", "sure")
)
"""Names of `hlm.spans.count_runs`' six numbers among a reply's metrics."""


def span_costs(settings: Settings) -> SpanCosts:
    """What a token costs, as the settings declare it: paces measured would be in the text.

    The window is what a round trip takes, twice: a device raises its credit when half is used up.
    """
    llm, trip = settings.llm_pace, settings.llm_round_trip
    return SpanCosts(llm, settings.slm_pace, trip, window=2 * math.ceil((trip + llm) / llm))


def learns_take_back(settings: Settings) -> bool:
    """Whether counts of a round's drafts decide when the next round takes back.

    A certified threshold of generated text holds for text that is made as the judged text was, so
    there the rule depends on the settings alone.
    """
    rule = sums_rule(settings)
    return settings.streams and not (rule is not None and rule.sequential)


@lru_cache(maxsize=256)
def _rule(settings: Settings, counts: tuple[float, ...]) -> TakeBack:
    if settings.policy == "always":
        return AT_ONCE
    costs = span_costs(settings)
    if not counts:
        return certain(costs)
    return learned(checked_counts(counts), costs, settings.tokens_per_prompt)


def take_back(settings: Settings, counts: Sequence[float] = ()) -> TakeBack:
    """The rule of a run whose escalations open streams.

    Parameters
    ----------
    settings : Settings
        Of the run.
    counts : sequence of float
        The last round's `run_counts`, summed over clients; none yet: empty.
    """
    return _rule(settings, tuple(counts))


def run_counts(routed: Routed) -> Figures:
    """How drafts of these texts followed each other, by the names of `RUN_COUNTS`."""
    found = np.zeros(len(RUN_COUNTS), np.int64)
    for records in routed.records:
        found += count_runs(records.sure, records.present.sum(axis=1)).ravel().astype(np.int64)
    return dict(zip(RUN_COUNTS, found.tolist(), strict=True))
