"""What a verifier comes to, enumerated: no draw anywhere, and not for long vocabularies."""

from __future__ import annotations

from collections.abc import Iterator
from functools import singledispatch

import torch
from torch import Tensor

from hlm.sampling import check_probs, top_token
from hlm.truncation.quantising import probs_from_weights, quantise, quantise_dithered
from hlm.truncation.truncate import spread, truncate
from hlm.verification import Coupled, Greedy, Verifier
from hlm.verification.full import PROBABILITY_BITS, Full
from hlm.verification.scalar import Scalar
from hlm.verification.speculative import accept_probability, residual
from hlm.verification.truncated import Truncated, TruncatedExact

SLICES_AT_ONCE = 64


def total_variation(first: Tensor, second: Tensor) -> Tensor:
    """Total variation distance of two distributions [rows, vocab], float64 [rows] in [0, 1]."""
    return (first.to(torch.float64) - second.to(torch.float64)).abs().sum(dim=-1) / 2


def token_distribution(drawn: Tensor, seen: Tensor, target: Tensor) -> Tensor:
    """Distribution of the token when the draft is drawn from one and tested against another.

    All float64 [rows, vocab]; with `seen` equal to `drawn` the result is `target`.
    """
    kept = drawn * accept_probability(seen, target)
    rejected = (drawn - kept).sum(dim=-1, keepdim=True)
    return kept + rejected * residual(seen, target)


@singledispatch
def rejection_probability(verifier: Verifier, probs: Tensor, target: Tensor) -> Tensor:
    """Chance that the token differs from the draft, float64 [rows]."""
    raise NotImplementedError(verifier.name)


@singledispatch
def output_distribution(verifier: Verifier, probs: Tensor, target: Tensor) -> Tensor:
    """Exact distribution of the token that results, float64 [rows, vocab]."""
    raise NotImplementedError(verifier.name)


@rejection_probability.register
def _(verifier: Greedy, probs: Tensor, target: Tensor) -> Tensor:
    return (top_token(probs) != top_token(target)).to(torch.float64)


@output_distribution.register
def _(verifier: Greedy, probs: Tensor, target: Tensor) -> Tensor:
    exact = check_probs("target", target)
    return torch.zeros_like(exact).scatter_(1, top_token(exact).unsqueeze(1), 1.0)


@rejection_probability.register
def _(verifier: Coupled, probs: Tensor, target: Tensor) -> Tensor:
    """One minus the chance that both races end alike."""
    matches = match_probability(probs.to(torch.float64), target.to(torch.float64))
    return (1.0 - matches.sum(dim=-1)).clamp(min=0.0)


@output_distribution.register
def _(verifier: Coupled, probs: Tensor, target: Tensor) -> Tensor:
    """Distribution of the winner of the target's race: rates over their sum."""
    rates = target.to(torch.float64)
    return rates / rates.sum(dim=-1, keepdim=True)


def quantised(probs: Tensor) -> Tensor:
    """What a verifier draws from that sends 16-bit weights."""
    return probs_from_weights(quantise(probs, PROBABILITY_BITS), PROBABILITY_BITS)


@rejection_probability.register
def _(verifier: Full, probs: Tensor, target: Tensor) -> Tensor:
    return total_variation(quantised(probs), target)


@output_distribution.register
def _(verifier: Full, probs: Tensor, target: Tensor) -> Tensor:
    drawn = quantised(probs)
    return token_distribution(drawn, drawn, target.to(torch.float64))


def _truncated_by_draft(verifier: Truncated, row: Tensor) -> Tensor:
    """Truncated distribution for every possible draft of one row, [vocab, vocab]."""
    probs = row.expand(row.shape[0], -1)
    counts = verifier.rule.choose(probs, row.clamp(max=1.0))
    return spread(*truncate(probs, counts), counts, row.shape[0])


@rejection_probability.register
def _(verifier: Truncated, probs: Tensor, target: Tensor) -> Tensor:
    """sum_d x_d (1 - y_d/xhat_d)+."""
    exact, goal = check_probs("probs", probs), check_probs("target", target)
    rejected = torch.empty(exact.shape[0], dtype=torch.float64)
    for row, (x, y) in enumerate(zip(exact, goal, strict=True)):
        seen = _truncated_by_draft(verifier, x).diagonal()
        rejected[row] = (x * (1 - accept_probability(seen, y))).sum()
    return rejected


@output_distribution.register
def _(verifier: Truncated, probs: Tensor, target: Tensor) -> Tensor:
    exact, goal = check_probs("probs", probs), check_probs("target", target)
    result = torch.empty_like(goal)
    for row, (x, y) in enumerate(zip(exact, goal, strict=True)):
        seen = _truncated_by_draft(verifier, x)
        accepted = accept_probability(seen.diagonal(), y)
        replaced = residual(seen, y.expand_as(seen))
        result[row] = x * accepted + (x * (1 - accepted)) @ replaced
    return result


@rejection_probability.register
def _(verifier: TruncatedExact, probs: Tensor, target: Tensor) -> Tensor:
    return total_variation(verifier._truncated(probs)[3], check_probs("target", target))


@output_distribution.register
def _(verifier: TruncatedExact, probs: Tensor, target: Tensor) -> Tensor:
    truncated = verifier._truncated(probs)[3]
    return token_distribution(truncated, truncated, check_probs("target", target))


def dither_slices(target: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Every way the dither can round one target [vocab], with its chance.

    The rounding changes only where a cumulative probability plus the dither crosses an integer, so
    between two crossings one dither stands for all.
    """
    cumulative = target.cumsum(dim=0)
    crossings = 1 - (cumulative / cumulative[-1] * 2**PROBABILITY_BITS).frac()
    edges = torch.cat([torch.zeros(1), crossings, torch.ones(1)]).to(torch.float64).sort().values
    widths = edges.diff()
    middles = edges[:-1] + widths / 2
    keep = widths > 0
    middles, widths = middles[keep], widths[keep]
    for start in range(0, middles.shape[0], SLICES_AT_ONCE):
        dithers = middles[start : start + SLICES_AT_ONCE]
        rows = target.expand(dithers.shape[0], -1)
        weights = quantise_dithered(rows, PROBABILITY_BITS, dithers)
        yield (
            probs_from_weights(weights, PROBABILITY_BITS),
            widths[start : start + SLICES_AT_ONCE],
        )


@rejection_probability.register
def _(verifier: Scalar, probs: Tensor, target: Tensor) -> Tensor:
    """Mean of TV(quantised x, rounded y) over the rounding."""
    seen, goal = quantised(probs), check_probs("target", target)
    rejected = torch.zeros(goal.shape[0], dtype=torch.float64)
    for row in range(goal.shape[0]):
        for rounded, chances in dither_slices(goal[row]):
            rejected[row] += chances @ total_variation(seen[row], rounded)
    return rejected


@output_distribution.register
def _(verifier: Scalar, probs: Tensor, target: Tensor) -> Tensor:
    seen, goal = quantised(probs), check_probs("target", target)
    result = torch.zeros_like(goal)
    for row in range(goal.shape[0]):
        for rounded, chances in dither_slices(goal[row]):
            x = seen[row].expand_as(rounded)
            result[row] += chances @ token_distribution(x, x, rounded)
    return result


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
