"""Tokens of many clients end to end: each client's own number for its tokens, and sums of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hlm.arrays import BoolArray, FloatArray, IntArray


@dataclass(frozen=True)
class Owners:
    """Which client each of n tokens belongs to.

    Sums are to the bit those of a client's tokens alone, so a rule gives a client the same step
    whether it is asked about one or about all of them.

    Attributes
    ----------
    client : int64 [n]
        In 0 .. count - 1, rising.
    count : int
        Clients, with or without tokens.
    """

    client: IntArray
    count: int

    @classmethod
    def one(cls, tokens: int) -> Owners:
        """A single client that owns all tokens."""
        return cls(np.zeros(tokens, np.int64), 1)

    @cached_property
    def sizes(self) -> IntArray:
        """Tokens of each client, int64 [count]."""
        return np.bincount(self.client, minlength=self.count)

    def select(self, chosen: BoolArray) -> Owners:
        """Owners of some tokens (bool [n])."""
        return Owners(self.client[chosen], self.count)

    def spread(self, values: FloatArray) -> FloatArray:
        """Each client's number (float64 [count]) for its tokens, float64 [n]."""
        return np.broadcast_to(values, len(self.client)) if self.count == 1 else values[self.client]

    def total(self, terms: FloatArray) -> FloatArray:
        """Sum of each client's terms (float64 [n]), float64 [count]."""
        if self.count == 1:
            return np.array([terms.sum()])
        totals = np.zeros(self.count)
        starts = np.cumsum(self.sizes) - self.sizes
        # NumPy adds pairwise, in an order that depends on how many there are: clients that have
        # as many tokens are rows of one table, and each row is added as if alone.
        for size in np.unique(self.sizes[self.sizes > 0]).tolist():
            rows = np.flatnonzero(self.sizes == size)
            totals[rows] = terms[starts[rows, None] + np.arange(size)].sum(axis=1)
        return totals

    def mean(self, terms: FloatArray) -> FloatArray:
        """Mean of each client's terms, float64 [count]; 0 without tokens."""
        return np.asarray(self.total(terms) / np.maximum(self.sizes, 1))
