"""Streams from the LLM and when to take them back: costs, rules, and what they come to.

An escalation opens a stream: the LLM decides the token and writes on. The device reads along with
its own model, a *draft* at each position, and takes back where a rule says so. Tokens kept are
among those with ``u <= th``, as without streams, and fewer. Protocol and figures: `docs/spans.md`.
"""

from __future__ import annotations

from hlm.spans.costs import SpanCosts
from hlm.spans.courses import Spent, best_course, course, plain_course, spent, token_course
from hlm.spans.rules import AT_ONCE, NEVER, ONE_BY_ONE, TakeBack, certain, learned
from hlm.spans.runs import checked_counts, count_runs

__all__ = [
    "AT_ONCE",
    "NEVER",
    "ONE_BY_ONE",
    "SpanCosts",
    "Spent",
    "TakeBack",
    "best_course",
    "certain",
    "checked_counts",
    "count_runs",
    "course",
    "learned",
    "plain_course",
    "spent",
    "token_course",
]
