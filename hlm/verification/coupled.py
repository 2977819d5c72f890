"""Shared randomness: the server samples its own token, and the draft usually is the same one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hlm.arrays import Array
from hlm.randomness import DrawKeys, exponentials
from hlm.sampling import check_probs
from hlm.verification.interface import (
    Claim,
    Draft,
    Verdict,
    checked_target,
    decided_tokens,
    drafted,
)

if TYPE_CHECKING:
    from torch import Tensor


def exponential_race(probs: Tensor, clocks: Tensor) -> Tensor:
    """The token whose clock rings first: argmin of clocks / probs.

    For independent Exp(1) clocks the winner has exactly the distribution (Gumbel-max in other
    clothes).

    Parameters
    ----------
    probs : Tensor [rows, vocab]
        Rows have a positive sum; a token of probability 0 never wins.
    clocks : Tensor of float64 [rows, vocab]
        Positive and finite.

    Returns
    -------
    Tensor of int64 [rows]
        The lowest id on ties.
    """
    exact = probs.double()
    waiting = clocks / exact
    # clock / 1e-320 overflows to inf like a clock / 0: settle those by their probability, so that
    # an impossible token cannot win by its lower id
    overflow = waiting.isinf().all(dim=-1, keepdim=True)
    if bool(overflow.any()):
        waiting = waiting.where(~overflow, -exact)
    return waiting.argmin(dim=-1)


class Coupled:
    """Both sides race the same exponential clocks (Daliri, Musco, Suresh, arXiv 2408.07978).

    Crosses the link: the draft's id up, the token down; no probability in either direction.
    Exact: the output is the server's own race, which knows nothing of the draft. It stays exact
    for any draft, also a dishonest one. Rejection probability:
    1 - sum_i 1 / sum_j max(x_j/x_i, y_j/y_i), between TV(x, y) and 2 TV / (1 + TV).
    """

    name = "coupled"

    def draft(self, probs: Tensor, keys: DrawKeys) -> Draft:
        """Race the device distribution; see `Verifier.draft`."""
        exact = check_probs("probs", probs)
        tokens = exponential_race(exact, exponentials(keys, exact.shape[1]))
        return drafted(exact, tokens, Claim(tokens))

    def decide(self, target: Tensor, claim: Claim, keys: DrawKeys) -> Verdict:
        """Race the target with the same clocks; see `Verifier.decide`."""
        exact = checked_target(target, claim)
        tokens = exponential_race(exact, exponentials(keys, exact.shape[1]))
        return Verdict(tokens == claim.tokens, tokens)

    def finish(self, draft: Draft, verdict: Verdict, keys: DrawKeys) -> Array:
        """Take the server's token; see `Verifier.finish`."""
        del draft, keys
        return decided_tokens(verdict)
