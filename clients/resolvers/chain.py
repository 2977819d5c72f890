"""The chain of those who may decide a token that the device is not sure of.

Cache, edge server and LLM have one shape. Each takes the rows that nobody before it decided; what
is left at the end stays with the device's own draft and is counted as unresolved. A resolver says
what it knows in a `Resolution` and writes nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from clients.records import Stage, TextBatch, TokenFeedback, Traffic
from hlm.arrays import Array, BoolArray, IntArray
from hlm.randomness import DrawKeys
from hlm.verification import Draft

Note = TypeVar("Note")


@dataclass(frozen=True)
class Escalation:
    """Rows of one step that left the device.

    Attributes
    ----------
    texts : TextBatch
        All texts of the device; `rows` points into it.
    rows, steps : numpy.ndarray
        int64 [n], the text and the routed place in it. In the `score` workload a row may occur
        several times, in order of position.
    positions : numpy.ndarray
        int64 [n], the place of the token in its text; everything before it is known.
    draft : Draft
        The drafts of these n rows.
    keys : DrawKeys
        What the random numbers of these n rows are keyed by.
    hidden : Array or None
        float32 [n, size], the SLM's last hidden state, for context keys.
    uncertainty : numpy.ndarray
        float64 [n].
    audited : numpy.ndarray
        bool [n], kept drafts that are verified all the same, and places that the LLM is writing:
        only who verifies may decide them.
    spans : numpy.ndarray
        int64 [n], tokens that the LLM may go on writing after each of these; 0: none.
    """

    texts: TextBatch
    rows: IntArray
    steps: IntArray
    positions: IntArray
    draft: Draft
    keys: DrawKeys
    hidden: Array | None
    uncertainty: NDArray[np.float64]
    audited: BoolArray
    spans: IntArray

    def select(self, chosen: BoolArray) -> Escalation:
        """The escalation of some of the rows only (bool [n])."""
        if chosen.all():
            return self
        index = np.flatnonzero(chosen)
        return Escalation(
            texts=self.texts,
            rows=self.rows[index],
            steps=self.steps[index],
            positions=self.positions[index],
            draft=self.draft.select(index),
            keys=self.keys.select(index),
            hidden=None if self.hidden is None else self.hidden[index],
            uncertainty=self.uncertainty[index],
            audited=self.audited[index],
            spans=self.spans[index],
        )


@dataclass(frozen=True)
class Resolution(Generic[Note]):
    """What a resolver knows of n rows, and what it took to find out.

    Attributes
    ----------
    tokens : numpy.ndarray
        int64 [n], -1 where undecided.
    stages : numpy.ndarray
        int8 [n], a `Stage`; `Stage.UNRESOLVED` where undecided.
    is_llm_choice : numpy.ndarray
        bool [n]: the token is what the LLM itself puts there, and not one as good.
    withheld : numpy.ndarray
        int64 [n], the token it would have put where it leaves the row to who verifies, so that
        its hits are audited; -1 elsewhere.
    feedback : list of TokenFeedback
        What the LLM said of tokens, those of earlier places among them.
    traffic : Traffic
        What crossed the links for this.
    note : Note or None
        What the resolver will want to know when it learns how the step ended; nobody else reads it.
    """

    tokens: IntArray
    stages: NDArray[np.int8]
    is_llm_choice: BoolArray
    withheld: IntArray
    feedback: list[TokenFeedback] = field(default_factory=list)
    traffic: Traffic = field(default_factory=Traffic)
    note: Note | None = None

    @classmethod
    def none(cls, rows: int, note: Note | None = None) -> Resolution[Note]:
        """Nothing decided for `rows` rows; to be filled in."""
        return cls(
            tokens=np.full(rows, -1, np.int64),
            stages=np.full(rows, Stage.UNRESOLVED, np.int8),
            is_llm_choice=np.zeros(rows, np.bool_),
            withheld=np.full(rows, -1, np.int64),
            note=note,
        )

    def include(self, rows: BoolArray, part: Resolution[Any]) -> None:
        """Take over what `part` decided of these rows (bool [n]), its feedback and its traffic."""
        self.tokens[rows] = part.tokens
        self.stages[rows] = part.stages
        self.is_llm_choice[rows] = part.is_llm_choice
        self.feedback.extend(part.feedback)
        self.traffic.include(part.traffic)


@dataclass(frozen=True)
class Asked(Generic[Note]):
    """What one resolver was asked in a step.

    Attributes
    ----------
    rows : numpy.ndarray
        bool [n], which rows of the escalation.
    resolution : Resolution
        What it said of them.
    """

    rows: BoolArray
    resolution: Resolution[Note]


class Resolver(Protocol[Note]):
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

    def resolve(self, escalation: Escalation) -> Resolution[Note]:
        """Decide what it can; never raises because someone else is down."""
        ...

    def learn(
        self, escalation: Escalation, final: Resolution[Any], asked: Asked[Note] | None
    ) -> Traffic:
        """See how the step ended, e.g. to remember it; what crossed the links for that.

        Parameters
        ----------
        escalation : Escalation
            All rows that left the device, whoever was asked about them.
        final : Resolution
            Of the same rows; its traffic is that of all resolvers.
        asked : Asked or None
            What this resolver itself had said; None if it was asked nothing.
        """
        ...


def resolve_in_turn(
    resolvers: Sequence[Resolver[Any]], escalation: Escalation, learning: bool = True
) -> Resolution[Any]:
    """Ask each resolver about what is still open.

    Audited rows, of kept drafts (`Escalation.audited`) as well as of hits that a tier held back,
    pass by every tier that does not verify. A later tier decides just the easy ones among them,
    and what the others say of the rate of errors would be far from it.

    Parameters
    ----------
    resolvers : sequence of Resolver
        In the order in which they are asked.
    escalation : Escalation
        All rows of a step that left the device.
    learning : bool
        The resolvers may remember what was decided. Held-out texts must not find themselves in a
        cache the next time.

    Returns
    -------
    Resolution
        Tokens int64 [n] (the device's own draft where nobody decided) and stages, what was heard
        from the LLM, and all traffic.
    """
    final: Resolution[Any] = Resolution.none(len(escalation.rows))
    audited = escalation.audited.copy()
    asked: list[Asked[Any] | None] = []
    for resolver in resolvers:
        open_rows = (final.tokens < 0) & (~audited | resolver.verifies)
        if not open_rows.any():
            asked.append(None)
            continue
        part = resolver.resolve(escalation.select(open_rows))
        final.include(open_rows, part)
        audited[open_rows] |= part.withheld >= 0
        asked.append(Asked(open_rows, part))
    undecided = final.tokens < 0
    final.tokens[undecided] = np.asarray(escalation.draft.tokens)[undecided]
    if learning:
        for resolver, own in zip(resolvers, asked, strict=True):
            final.traffic.include(resolver.learn(escalation, final, own))
    return final
