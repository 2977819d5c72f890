"""Shared randomness: the server samples its own token, and the draft usually is the same one."""

from __future__ import annotations

import torch
from torch import Tensor

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

__all__ = ["Coupled", "exponential_race", "kept_loss", "match_probability"]


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
    exact = probs.to(torch.float64)
    waiting = clocks / exact
    # clock / 1e-320 overflows to inf like a clock / 0: settle those by their probability, so that
    # an impossible token cannot win by its lower id
    overflow = torch.isinf(waiting).all(dim=-1, keepdim=True)
    if bool(overflow.any()):
        waiting = torch.where(overflow, -exact, waiting)
    return waiting.argmin(dim=-1)


def match_probability(probs: Tensor, target: Tensor) -> Tensor:
    """Chance that both sides of a coupled race draw the same token, per token.

    The i-th is 1 / sum_j max(x_j/x_i, y_j/y_i) = x_i y_i / sum_j max(x_j y_i, y_j x_i). In the
    order of r = y/x the maximum is x_j y_i up to i and y_j x_i after it, so two running sums give
    all of them in O(V log V).

    Parameters
    ----------
    probs, target : Tensor of float64 [rows, vocab]

    Returns
    -------
    Tensor of float64 [rows, vocab]
    """
    ratio = torch.where(probs > 0, target / probs, torch.inf)
    order = ratio.argsort(dim=-1)
    x, y = probs.gather(1, order), target.gather(1, order)
    x_up_to = x.cumsum(dim=-1)
    y_after = y.flip(-1).cumsum(dim=-1).flip(-1) - y
    rates = y * x_up_to + x * y_after.clamp(min=0.0)
    matches = torch.where(rates > 0, x * y / torch.where(rates > 0, rates, 1.0), 0.0)
    return torch.zeros_like(matches).scatter_(1, order, matches)


def kept_loss(probs: Tensor, target: Tensor) -> Tensor:
    """What keeping each token unverified may cost when the others are decided by coupled races.

    The certificate TV(hybrid text, target text) <= E[sum of kept * loss] holds for coupled
    verification with this loss, 1 - P(both draw d) / x_d, the chance that the server's race would
    have ended elsewhere. Eq. 3's beta is smaller and suits speculative sampling only: there the
    draft's own acceptance is all that is tied to it, here the whole race is.

    Parameters
    ----------
    probs, target : Tensor of float64 [rows, vocab]

    Returns
    -------
    Tensor of float64 [rows, vocab]
        In [0, 1]; 0 where the distribution is 0.
    """
    possible = probs > 0
    share = match_probability(probs, target) / torch.where(possible, probs, 1.0)
    return torch.where(possible, (1 - share).clamp(0.0, 1.0), 0.0)


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

    def finish(self, draft: Draft, verdict: Verdict, keys: DrawKeys) -> Tensor:
        """Take the server's token; see `Verifier.finish`."""
        del draft, keys
        return decided_tokens(verdict)
