"""What every way of deciding an escalated token has in common.

Words used throughout: the *draft* d is the token the small model drew from its *device
distribution* x; the *claim* is all the server learns about it; the server compares it with the
*target* y, the distribution of the large model, and answers with a *verdict*. A draft is
*accepted*, or *rejected* and replaced: *resampled*. The chance that an accepted-or-resampled token
differs from the draft is the *rejection probability*; no scheme whose output has distribution y
rejects less often than TV(x, y).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from hlm.arrays import Array, BoolArray, IntArray
from hlm.randomness import DrawKeys
from hlm.sampling import check_probs

if TYPE_CHECKING:
    from torch import Tensor

UNDECIDED = -1
"""Stands in a token array where the device still has to find the token."""


class ClaimError(ValueError):
    """A claim or verdict from the other side cannot be what it says."""


def _select(field: Tensor | None, rows: IntArray | BoolArray) -> Tensor | None:
    return None if field is None else field[rows]


@dataclass(frozen=True)
class Claim:
    """All that the server learns about a batch of drafts, besides their prefixes.

    Weights are integers in units of 2**-bits, held as int64. A weight of 2**16 (a point mass) does
    not fit 16 bits: a codec sends ``weight - 1`` for the draft's own weight, which is at least 1,
    and a whole row modulo 2**16, where all zeros then mean a point mass on the draft.

    Attributes
    ----------
    tokens : Tensor of int64 [rows]
        The drafts.
    weight : Tensor of int64 [rows] or None
        `scalar`: x_d in units of 2**-16, 1 to 2**16.
    support : Tensor of int64 [rows, widest] or None
        `truncated`: ids of the tokens whose probabilities are sent; past `counts` padded with -1.
    weights : Tensor of int64 or None
        `truncated`: [rows, widest], units of 2**-8, 0 to 255, padded with 0. `full`: [rows, vocab],
        units of 2**-16.
    counts : Tensor of int64 [rows] or None
        `truncated`: k of each row.
    """

    tokens: Array
    weight: Tensor | None = None
    support: Tensor | None = None
    weights: Tensor | None = None
    counts: Tensor | None = None

    def select(self, rows: IntArray | BoolArray) -> Claim:
        """Keep some rows, given as a boolean mask or as indices [selected]."""
        return Claim(
            tokens=self.tokens[rows],
            weight=_select(self.weight, rows),
            support=_select(self.support, rows),
            weights=_select(self.weights, rows),
            counts=_select(self.counts, rows),
        )

    def entries(self) -> tuple[IntArray, IntArray, IntArray]:
        """Row after row without padding, ids increasing: counts [rows], weights and support [n].

        int64; the support is empty unless the claim has one.
        """
        rows, nothing = len(self.tokens), np.zeros(0, np.int64)
        if self.weight is not None:
            return np.ones(rows, np.int64), self.weight.numpy(), nothing
        if self.weights is None:
            return np.zeros(rows, np.int64), nothing, nothing
        if self.support is None or self.counts is None:
            return np.full(rows, self.weights.shape[1]), self.weights.numpy().reshape(-1), nothing
        counts, support = self.counts.numpy(), self.support.numpy()
        real = np.arange(support.shape[1]) < counts[:, None]
        order = np.where(real, support, np.iinfo(np.int64).max).argsort(axis=1, kind="stable")
        weights = np.take_along_axis(self.weights.numpy(), order, axis=1)
        return counts, weights[real], np.take_along_axis(support, order, axis=1)[real]

    @classmethod
    def of_entries(
        cls, tokens: IntArray, counts: IntArray, weights: IntArray, support: IntArray
    ) -> Claim:
        """The claim about `tokens` (int64 [rows]) that has these `entries`."""
        import torch

        drafts, rows = torch.from_numpy(tokens), len(tokens)
        if not weights.size:
            return cls(drafts)
        if not support.size:
            dense = torch.from_numpy(weights).view(rows, -1)
            alone = dense.shape[1] == 1
            return cls(drafts, weight=dense[:, 0]) if alone else cls(drafts, weights=dense)
        real = np.arange(int(counts.max())) < counts[:, None]
        padded = np.full((2, *real.shape), [[[UNDECIDED]], [[0]]])
        padded[:, real] = support, weights
        ids, masses = torch.from_numpy(padded)
        return cls(drafts, support=ids, weights=masses, counts=torch.from_numpy(counts))


@dataclass(frozen=True)
class Draft:
    """What the device knows about a batch of drafts.

    Attributes
    ----------
    tokens : Tensor of int64 [rows]
        The drafts.
    probabilities : Tensor of float64 [rows]
        x_d, in (0, 1], under `distribution`.
    distribution : Tensor of float64 [rows, vocab] or None
        The distribution the drafts were really drawn from (quantised or truncated, where the method
        does). None where the method has no further use for it.
    claim : Claim
        What goes up.
    """

    tokens: Array
    probabilities: Array
    distribution: Tensor | None
    claim: Claim

    def select(self, rows: IntArray | BoolArray) -> Draft:
        """Keep some rows, given as a boolean mask or as indices [selected]."""
        return Draft(
            tokens=self.tokens[rows],
            probabilities=self.probabilities[rows],
            distribution=_select(self.distribution, rows),
            claim=self.claim.select(rows),
        )


@dataclass(frozen=True)
class Verdict:
    """What the server decided.

    Attributes
    ----------
    accepted : Tensor of bool [rows]
        Whether the draft stands.
    tokens : Tensor of int64 [rows]
        The token; `UNDECIDED` where the device has to resample.
    target_weights : Tensor of int64 [rows, vocab] or None
        `scalar`: y in units of 2**-16, zeros in rows that are decided. Every entry is below 2**16.
    """

    accepted: Array
    tokens: Array
    target_weights: Tensor | None = None

    def select(self, rows: IntArray | BoolArray) -> Verdict:
        """Keep some rows, given as a boolean mask or as indices [selected]."""
        return Verdict(
            accepted=self.accepted[rows],
            tokens=self.tokens[rows],
            target_weights=_select(self.target_weights, rows),
        )


class Verifier(Protocol):
    """One way of deciding escalated tokens; device and server each hold an equal instance."""

    name: str
    """Key of `hlm.verifiers.VERIFIERS`, where the rest of what is known of it stands."""

    def draft(self, probs: Tensor, keys: DrawKeys) -> Draft:
        """Device: draw drafts from `probs` (float64 [rows, vocab])."""
        ...

    def decide(self, target: Tensor, claim: Claim, keys: DrawKeys) -> Verdict:
        """Server: accept or reject, given the target (float64 [rows, vocab])."""
        ...

    def finish(self, draft: Draft, verdict: Verdict, keys: DrawKeys) -> Array:
        """Device: the tokens, int64 [rows]."""
        ...


def drafted(probs: Tensor, tokens: Tensor, claim: Claim) -> Draft:
    """Assemble a draft whose tokens were drawn from `probs`."""
    probabilities = probs.gather(1, tokens.unsqueeze(1)).squeeze(1)
    return Draft(tokens=tokens, probabilities=probabilities, distribution=probs, claim=claim)


def kept_distribution(draft: Draft) -> Tensor:
    """The distribution of drafts, for methods that resample on the device.

    Raises
    ------
    ValueError
        If the drafts come without.
    """
    if draft.distribution is None:
        raise ValueError("distribution: this method needs that which the drafts were drawn from")
    return draft.distribution


def checked_target(target: Tensor, claim: Claim) -> Tensor:
    """Return the target as float64 on the CPU after checking it and the drafts against each other.

    Raises
    ------
    ClaimError
        If a draft is outside the vocabulary or the number of rows differs.
    ValueError
        If the target is not a distribution.
    """
    exact = check_probs("target", target)
    rows, vocab = exact.shape
    if claim.tokens.shape != (rows,):
        raise ClaimError(f"tokens has shape {tuple(claim.tokens.shape)}: it must be [{rows}]")
    if rows and (int(claim.tokens.amin()) < 0 or int(claim.tokens.amax()) >= vocab):
        raise ClaimError(
            f"tokens holds {int(claim.tokens.amin())} to {int(claim.tokens.amax())}: "
            f"allowed are 0 to {vocab - 1}"
        )
    return exact


def decided_tokens(verdict: Verdict) -> Array:
    """The tokens of a verdict that leaves nothing to the device.

    Raises
    ------
    ClaimError
        If a row is undecided.
    """
    if bool((verdict.tokens < 0).any()):
        raise ClaimError("tokens holds an undecided row, but this method decides every row")
    return verdict.tokens
