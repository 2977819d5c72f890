"""When a device that reads along takes the text back from the LLM.

Taking back at a sure draft pays if ``E[K] (streamed - kept) > P (opened - streamed)``: K tokens are
kept until the next unsure draft, each saves what the LLM's would have cost more, and with chance P
there is such a draft before the text ends, and the return costs a round trip (`SpanCosts`). That is
against staying until the run ends. `learned` also weighs chances that come later. What tells most
about K is to make the next drafts as well, while the LLM's token is under way.

A rule looks at drafts and positions alone, never at a clock: the same text at any pace.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from hlm.spans.costs import SpanCosts
from hlm.spans.runs import chances_of

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_WORTH = 0.99
"""Share of a cost that is left where saving the rest is worth more of device or LLM."""


@dataclass(frozen=True)
class TakeBack:
    """Decides row by row; one call for each step of a lockstep.

    Parameters
    ----------
    ahead : int
        Drafts that it looks at, from the position to be decided on, each made on the ones before
        it; at least 1. None is needed behind an unsure one.
    table : bool [tokens + 1, ahead + 1]
        Whether to take back, by tokens that remain (the last row is for all above) and by sure
        drafts ahead.
    reads_along : bool
        False: the LLM writes the whole text from its first token on, and the device does not draft.
    streams : bool
        False: each token is asked for alone, and the LLM writes no further until it is asked again.
    """

    ahead: int
    table: Bools = field(repr=False)
    reads_along: bool = True
    streams: bool = True

    def take_back(self, sure_ahead: Ints, remaining: Ints) -> Bools:
        """Rows, now in a stream, whose next token the device writes, bool [n]; only sure ones.

        Parameters
        ----------
        sure_ahead : int64 [n], 0 .. `ahead`
            Sure drafts in a row from this position on, included. Where they reach the text's end,
            `ahead`.
        remaining : int64 [n]
            Tokens that the text still lacks, this one included.
        """
        return np.asarray(self.table[np.minimum(remaining, len(self.table) - 1), sure_ahead])


AT_ONCE = TakeBack(1, np.array([[False, True]]))
"""Keeps every sure draft: the text of one token per escalation."""

ONE_BY_ONE = replace(AT_ONCE, streams=False)
"""The same text, and nothing is ever decoded in vain: for round trips far below the LLM's pace."""

NEVER = TakeBack(1, np.array([[False, False]]), reads_along=False)
"""The LLM streams its own text."""


def certain(costs: SpanCosts, ahead: int = 4) -> TakeBack:
    """Take back where the sure drafts already made pay for the return; needs no counts.

    `NEVER` where that takes more than `ahead` >= 1 drafts, or longer than the LLM's token.
    `ONE_BY_ONE` where one draft is enough, and a request behind it would wait longer for the LLM's
    step than it takes itself: a stream saves that if its next draft is unsure, say every other.
    """
    if not costs.break_even <= ahead:
        return NEVER
    fewest = max(math.ceil(costs.break_even), 1)
    if fewest * costs.slm_ms > costs.streamed_ms(0):
        return NEVER
    held_up = costs.per_ms * float(costs.held_up_ms(1, math.inf))
    if fewest == 1 and held_up > costs.opened - costs.streamed():
        return ONE_BY_ONE
    return TakeBack(fewest, np.arange(fewest + 1)[None] == fewest)


def learned(counts: Floats, costs: SpanCosts, tokens: int, ahead: int = 4) -> TakeBack:
    """A rule for texts of `tokens` tokens whose drafts follow the counted chain.

    The first of `NEVER`, `ONE_BY_ONE` and streams of 1 to `ahead` drafts, unless a later one saves
    a hundredth: the device drafts for no less, the LLM decodes nothing in vain for less, and less
    is lost in what costs leave out. Of one token `ONE_BY_ONE` need not save that much: it is
    drafted where ``p >= tS / (R + tL)`` for sure drafts of share p, which is eq. 13 of the paper
    (Solat et al., arXiv 2507.00082) with the device in the place of its peers. `certain` where
    nothing was counted.

    Parameters
    ----------
    counts : float64 [3, 2]
        Of `hlm.spans.runs.count_runs`, summed over whoever shares the rule.
    costs : SpanCosts
    tokens : int
        Most tokens of a text, >= 1.
    ahead : int
        Most drafts that the device may make before it decides, >= 1.

    Raises
    ------
    ValueError
        On an argument outside its range.
    """
    if tokens < 1 or ahead < 1:
        raise ValueError(f"tokens, ahead: {tokens}, {ahead}; allowed: >= 1")
    if not counts.any():
        return certain(costs, ahead)
    least, rule = costs.plain(tokens), NEVER
    alone = _one_by_one(counts, costs, tokens)
    if alone <= least * (_WORTH if tokens > 1 else 1):
        least, rule = alone, ONE_BY_ONE
    for further in range(1, ahead + 1):
        cost, other = planned(counts, costs, tokens, further)
        if cost < _WORTH * least:
            least, rule = cost, other
    return rule


def _one_by_one(counts: Floats, costs: SpanCosts, tokens: int) -> float:
    """Expected cost of a text whose unsure tokens are asked for one at a time."""
    sure, after_unsure, after_sure = chances_of(counts)
    cost = 0.0
    for _ in range(tokens):
        cost += sure * costs.kept + (1 - sure) * costs.opened
        sure = sure * after_sure + (1 - sure) * after_unsure
    return float(cost)


def planned(counts: Floats, costs: SpanCosts, tokens: int, ahead: int) -> tuple[float, TakeBack]:
    """Least expected cost of a text under the counted chain, and the rule that has it.

    Backward induction over the tokens that remain. The state is the number of sure drafts ahead,
    the last standing for all longer runs. Every position's drafts are made anew, which overstates
    their number where the LLM writes what the device drafted.

    Parameters
    ----------
    counts : float64 [3, 2], not all 0
    costs : SpanCosts
    tokens, ahead : int
        Of a text, and drafts before each decision; both >= 1.
    """
    first, after_unsure, after_sure = chances_of(counts)
    runs = np.arange(ahead + 1)
    # Chance of each state behind an unsure draft; then that of each state behind each.
    start = after_sure ** np.maximum(runs - 1, 0) * np.where(runs < ahead, 1 - after_sure, 1.0)
    moves = np.zeros((ahead + 1, ahead + 1))
    moves[0] = np.where(runs, after_unsure * start, 1 - after_unsure)
    moves[runs[1:], runs[:-1]] = 1.0
    # At the far end one more draft is made: sure again, or the run's end comes in sight.
    moves[ahead, ahead - 1 :] = 1 - after_sure, after_sure
    drafts = np.minimum(runs + 1, ahead)
    streamed = costs.streamed(drafts)
    # Chance of the number of drafts that a run has in all, by state.
    lengths = np.eye(ahead + 1, max(tokens, ahead) + 1)
    lengths[ahead, ahead:] = (1 - after_sure) * after_sure ** np.arange(lengths.shape[1] - ahead)
    # Least cost of the tokens that remain, by state: while local, and in a stream.
    local, stream = np.zeros(ahead + 1), np.zeros(ahead + 1)
    table = np.zeros((tokens + 1, ahead + 1), np.bool_)
    for remaining in range(1, tokens + 1):
        keep, stay = costs.kept + moves @ local, streamed + moves @ stream
        # A run that reaches the text's end is followed by no request.
        held_up = costs.held_up_ms(np.arange(remaining), remaining, drafts[:, None])
        taken = keep + costs.output_price * costs.overshoot(remaining, drafts)
        taken += costs.per_ms * (lengths[:, :remaining] * held_up).sum(axis=1)
        local = np.where(runs, keep, costs.opened + moves @ stream)
        table[remaining] = (runs > 0) & (taken < stay)
        stream = np.where(table[remaining], taken, stay)
    return float(np.where(runs, first * start, 1 - first) @ local), TakeBack(ahead, table)
