"""How often a cache or peer hit is wrong: measured by letting the LLM decide some of them anyway.

A hit is wrong if the LLM, asked about the same place, gives another token. In greedy decoding
that is a fact about the place; in sampled decoding the LLM's own draw may differ from an equally
good one, so the rate is an upper bound there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from clients.records import UNVERIFIED
from clients.resolvers.chain import Asked, Escalation, Resolution
from hlm.arrays import BoolArray, FloatArray, IntArray
from hlm.intervals import wilson_interval
from hlm.randomness import DrawKeys, Purpose, uniform_matrix

AUDIT_KEPT, AUDIT_CACHE, AUDIT_EDGE, EXPLORE_EDGE = range(4)
"""Columns of a row's audit draws; the router uses the first."""


def audit_draws(keys: DrawKeys, column: int) -> FloatArray:
    """One uniform number a row, float64 [rows] in (0, 1), independent between columns."""
    return uniform_matrix(keys, Purpose.AUDIT, column + 1)[:, column]


@dataclass
class FalseHits:
    """Audited hits of one tier.

    Attributes
    ----------
    checked, wrong : int
        Hits that the LLM decided as well, and those it decided otherwise.
    """

    checked: int = 0
    wrong: int = 0

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the rate."""
        return wilson_interval(self.wrong, self.checked)

    @property
    def expected(self) -> float:
        """Posterior mean of the rate from a uniform prior, for use in costs; 0.5 at first."""
        return (self.wrong + 1) / (self.checked + 2)

    def exceeds(self, limit: float) -> bool:
        """Whether the rate is above `limit` beyond doubt: the lower end of the interval is.

        A tier with few audits stays open; one that is closed goes on being audited, and opens
        again when the evidence turns.
        """
        return self.checked > 0 and self.interval[0] > limit


class AuditedTier:
    """What cache and edge have in common: some hits are held back, for the LLM to decide.

    Parameters
    ----------
    rate : float
        Share of hits that are audited, in [0, 1].
    most_wrong : float
        `max-false-hits`: the tier is closed while the false-hit rate exceeds this; 1 never.
    column : int
        Which of a row's audit draws decide.

    Raises
    ------
    ValueError
        If a share is out of range.
    """

    def __init__(self, rate: float, most_wrong: float, column: int) -> None:
        for name, share in (("audit-rate", rate), ("max-false-hits", most_wrong)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} = {share}: must lie in 0 .. 1")
        self.rate = rate
        self.most_wrong = most_wrong
        self.false_hits = FalseHits()
        self._column = column

    @property
    def closed(self) -> bool:
        """Whether hits are held back because too many were wrong."""
        return self.false_hits.exceeds(self.most_wrong)

    def audited(self, keys: DrawKeys) -> BoolArray:
        """Rows whose hit, if they have one, is left to the LLM, bool [rows]."""
        if self.rate <= 0:
            return np.zeros(keys.rows, np.bool_)
        return np.asarray(audit_draws(keys, self._column) < self.rate)

    def withheld(self, escalation: Escalation, tokens: IntArray) -> IntArray:
        """Proposals (int64 [n], -1 where none) that are left to the LLM; -1 elsewhere.

        While the tier is closed all of its proposals are audited: they cost nothing where the LLM
        decides these rows in any case. Rows held back must reach the LLM whatever tiers are in
        between (`Resolution.withheld`), or the rate is that of those rows that others left.
        """
        return tokens if self.closed else np.where(self.audited(escalation.keys), tokens, -1)

    def judge(self, final: Resolution[Any], asked: Asked[Any] | None) -> None:
        """Compare what was held back with what was decided in the end."""
        if asked is None:
            return
        withheld = asked.resolution.withheld
        judged = (withheld >= 0) & verified_rows(final)[asked.rows]
        self.false_hits.checked += int(judged.sum())
        self.false_hits.wrong += int((withheld != final.tokens[asked.rows])[judged].sum())


def verified_rows(resolution: Resolution[Any]) -> BoolArray:
    """Rows that the LLM decided, bool [n]."""
    return ~np.isin(resolution.stages, UNVERIFIED)
