"""The chain of those who may decide a token that the device is not sure of.

Cache, edge server and LLM have one shape. Each takes the rows that nobody before it decided; what
is left at the end stays with the device's own draft and is counted as unresolved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from clients.records import BoolArray, IntArray, Stage, TextBatch, TokenRecords, Traffic
from hlm.randomness import DrawKeys
from hlm.verification import Draft


@dataclass(frozen=True)
class Escalation:
    """Rows of one step that left the device.

    Attributes
    ----------
    texts : TextBatch
        All texts of the device; `rows` points into it.
    records : TokenRecords
        Where feedback on earlier tokens is noted; `rows` and `steps` point into it.
    rows, steps : numpy.ndarray
        int64 [n]. In the `score` workload a row may occur several times, in order of position.
    positions : numpy.ndarray
        int64 [n], the place of the token in its text; everything before it is known.
    draft : Draft
        The drafts of these n rows.
    keys : DrawKeys
        What the random numbers of these n rows are keyed by.
    hidden : torch.Tensor or None
        float32 [n, size], the SLM's last hidden state, for context keys.
    uncertainty : numpy.ndarray
        float64 [n].
    """

    texts: TextBatch
    records: TokenRecords
    rows: IntArray
    steps: IntArray
    positions: IntArray
    draft: Draft
    keys: DrawKeys
    hidden: torch.Tensor | None
    uncertainty: NDArray[np.float64]

    def select(self, chosen: BoolArray) -> Escalation:
        """The escalation of some of the rows only (bool [n])."""
        if chosen.all():
            return self
        index = np.flatnonzero(chosen)
        return Escalation(
            texts=self.texts,
            records=self.records,
            rows=self.rows[index],
            steps=self.steps[index],
            positions=self.positions[index],
            draft=self.draft.select(torch.from_numpy(index)),
            keys=self.keys.select(index),
            hidden=None if self.hidden is None else self.hidden[torch.from_numpy(index)],
            uncertainty=self.uncertainty[index],
        )


@dataclass(frozen=True)
class Resolution:
    """Who decided what.

    Attributes
    ----------
    tokens : numpy.ndarray
        int64 [n], -1 where undecided.
    stages : numpy.ndarray
        int8 [n], a `Stage`; `Stage.UNRESOLVED` where undecided.
    audited : numpy.ndarray or None
        bool [n], rows that only who verifies may decide from here on; None: no row.
    """

    tokens: IntArray
    stages: NDArray[np.int8]
    audited: BoolArray | None = None

    @classmethod
    def none(cls, rows: int) -> Resolution:
        """Nothing decided for `rows` rows."""
        return cls(np.full(rows, -1, np.int64), np.full(rows, Stage.UNRESOLVED, np.int8))


class Resolver(Protocol):
    """Cache, edge server or LLM, as the router sees it.

    Attributes
    ----------
    needs_hidden : bool
        It looks at the small model's last hidden state.
    verifies : bool
        What it decides is the LLM's own word, so audits may end there.
    """

    needs_hidden: bool
    verifies: bool

    def resolve(self, escalation: Escalation, traffic: Traffic) -> Resolution:
        """Decide what it can; never raises because someone else is down."""
        ...

    def learn(self, escalation: Escalation, resolution: Resolution, traffic: Traffic) -> None:
        """See what was decided in the end, e.g. to remember it."""
        ...


def resolve_in_turn(
    resolvers: Sequence[Resolver], escalation: Escalation, traffic: Traffic
) -> Resolution:
    """Ask each resolver about what is still open.

    Audited rows, of kept drafts (`TokenRecords.audited`) as well as of hits that a tier held back,
    pass by every tier that does not verify. A later tier decides just the easy ones among them,
    and what the others say of the rate of errors would be far from it.

    Returns
    -------
    Resolution
        Tokens int64 [n] (the device's own draft where nobody decided) and stages.
    """
    total = Resolution.none(len(escalation.rows))
    audited = escalation.records.audited[escalation.rows, escalation.steps]
    for resolver in resolvers:
        pending = (total.tokens < 0) & (~audited | resolver.verifies)
        if not pending.any():
            continue
        part = resolver.resolve(escalation.select(pending), traffic)
        total.tokens[pending] = part.tokens
        total.stages[pending] = part.stages
        if part.audited is not None:
            audited[pending] |= part.audited
    drafts = escalation.draft.tokens.numpy()
    final = Resolution(np.where(total.tokens < 0, drafts, total.tokens), total.stages)
    for resolver in resolvers:
        resolver.learn(escalation, final, traffic)
    return final
