"""Token and probability only: the device learns the rest when its draft is rejected.

After DSSD (arXiv 2507.12000): the server tests the draft with x_d alone; on rejection something
about y comes down and the device, which knows x, resamples. Two exact ways to say y in 16-bit
integers: `Scalar` sends all of it, `ScalarProposals` a few samples of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from hlm.randomness import DrawKeys, Purpose, uniforms
from hlm.sampling import check_probs, draw
from hlm.truncation.quantising import probs_from_weights, quantise, quantise_dithered
from hlm.verification import speculative
from hlm.verification.full import PROBABILITY_BITS
from hlm.verification.interface import (
    UNDECIDED,
    Claim,
    ClaimError,
    Draft,
    Need,
    Verdict,
    checked_target,
    drafted,
    kept_distribution,
    total_variation,
    verdict_on,
)

__all__ = ["DEFAULT_PROPOSALS", "Scalar", "ScalarProposals", "proposal_probability"]

DEFAULT_PROPOSALS = 8
_UNITS = 2**PROBABILITY_BITS
_SLICES_AT_ONCE = 64


def _quantised(probs: Tensor) -> Tensor:
    return probs_from_weights(quantise(probs, PROBABILITY_BITS), PROBABILITY_BITS)


def _draft(probs: Tensor, keys: DrawKeys) -> Draft:
    weights = quantise(probs, PROBABILITY_BITS)
    quantised = probs_from_weights(weights, PROBABILITY_BITS)
    tokens = draw(quantised, uniforms(keys, Purpose.DRAFT, 1).squeeze(1))
    weight = weights.gather(1, tokens.unsqueeze(1)).squeeze(1)
    return drafted(quantised, tokens, Claim(tokens, weight=weight))


def _claimed_probability(claim: Claim) -> Tensor:
    weight = claim.weight
    if weight is None or weight.shape != claim.tokens.shape:
        raise ClaimError("weight: the scalar methods need one per draft")
    if weight.numel() and not 1 <= int(weight.min()) <= int(weight.max()) <= _UNITS:
        raise ClaimError(
            f"weight holds {int(weight.min())} to {int(weight.max())}: allowed are 1 to {_UNITS}"
        )
    return weight.to(torch.float64).mul(1 / _UNITS)


def _accepts(target: Tensor, claim: Claim, keys: DrawKeys) -> Tensor:
    of_draft = target.gather(1, claim.tokens.unsqueeze(1)).squeeze(1)
    chance = speculative.accept_probability(_claimed_probability(claim), of_draft)
    return uniforms(keys, Purpose.ACCEPT, 1).squeeze(1) < chance


def _dither_slices(target: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Every way the dither can round one target [vocab], with its chance.

    The rounding changes only where a cumulative probability plus the dither crosses an integer, so
    between two crossings one dither stands for all.
    """
    cumulative = target.cumsum(dim=0)
    crossings = 1 - (cumulative / cumulative[-1] * _UNITS).frac()
    edges = torch.cat([torch.zeros(1), crossings, torch.ones(1)]).to(torch.float64).sort().values
    widths = edges.diff()
    middles = edges[:-1] + widths / 2
    keep = widths > 0
    middles, widths = middles[keep], widths[keep]
    for start in range(0, middles.shape[0], _SLICES_AT_ONCE):
        dithers = middles[start : start + _SLICES_AT_ONCE]
        chances = widths[start : start + _SLICES_AT_ONCE]
        rows = target.expand(dithers.shape[0], -1)
        weights = quantise_dithered(rows, PROBABILITY_BITS, dithers)
        yield probs_from_weights(weights, PROBABILITY_BITS), chances


class Scalar:
    """The draft's probability up; on rejection the whole target comes down, quantised.

    Crosses the link: the draft's id and its 16-bit weight up; one bit down, and after a rejection
    a 16-bit weight per vocabulary entry. Exact: the target is rounded at random without bias
    (`quantise_dithered`), one rounding serves both the accept test and the residual, the output
    has exactly the rounded distribution, and the mean of the rounded distribution is the target.
    Rejection probability: the mean over the rounding of TV(x, rounded y), at least TV(x, y), for x
    the quantised device distribution.
    """

    name = "scalar"
    exact = True
    shared_draw = False
    needs = Need.PROBS
    crosses = "the draft's id and weight up; accepted, or the quantised target, down"

    def draft(self, probs: Tensor, keys: DrawKeys) -> Draft:
        """Quantise the distribution and draw from it; see `Verifier.draft`."""
        return _draft(probs, keys)

    def decide(self, target: Tensor, claim: Claim, keys: DrawKeys) -> Verdict:
        """Test the draft; send the target for those rejected; see `Verifier.decide`."""
        exact = checked_target(target, claim)
        dither = uniforms(keys, Purpose.RESAMPLE, 1).squeeze(1)
        weights = quantise_dithered(exact, PROBABILITY_BITS, dither)
        accepted = _accepts(probs_from_weights(weights, PROBABILITY_BITS), claim, keys)
        # a point mass leaves one possible token: name it, as 2**16 does not fit 16 bits
        heaviest, heaviest_token = weights.max(dim=-1)
        certain = heaviest == _UNITS
        tokens = torch.where(certain, heaviest_token, UNDECIDED)
        tokens = torch.where(accepted, claim.tokens, tokens)
        sent = torch.where((tokens == UNDECIDED).unsqueeze(1), weights, 0)
        verdict = verdict_on(exact, claim.tokens, accepted, tokens)
        return replace(verdict, target_weights=sent)

    def finish(self, draft: Draft, verdict: Verdict, keys: DrawKeys) -> Tensor:
        """Resample undecided rows from (y - x)+; see `Verifier.finish`."""
        open_rows = verdict.tokens == UNDECIDED
        if not bool(open_rows.any()):
            return verdict.tokens
        weights, probs = verdict.target_weights, kept_distribution(draft)
        if weights is None or weights.shape != probs.shape:
            raise ClaimError(f"target_weights: needed as {tuple(probs.shape)} to resample")
        try:
            target = probs_from_weights(weights[open_rows], PROBABILITY_BITS)
        except ValueError as error:
            raise ClaimError(f"target_weights: {error}") from error
        # number 0 of this purpose is the server's dither
        numbers = uniforms(keys.select(open_rows), Purpose.RESAMPLE, 2)[:, 1]
        tokens = verdict.tokens.clone()
        tokens[open_rows] = draw(speculative.residual(probs[open_rows], target), numbers)
        return tokens

    def rejection_probability(self, probs: Tensor, target: Tensor) -> Tensor:
        """Mean of TV(quantised x, rounded y) over the rounding; O(vocab**2), for analysis."""
        seen, goal = _quantised(probs), check_probs("target", target)
        rejected = torch.zeros(goal.shape[0], dtype=torch.float64)
        for row in range(goal.shape[0]):
            for rounded, chances in _dither_slices(goal[row]):
                rejected[row] += chances @ total_variation(seen[row], rounded)
        return rejected

    def output_distribution(self, probs: Tensor, target: Tensor) -> Tensor:
        """Distribution of the token, over every rounding; O(vocab**2), for analysis."""
        seen, goal = _quantised(probs), check_probs("target", target)
        result = torch.zeros_like(goal)
        for row in range(goal.shape[0]):
            for rounded, chances in _dither_slices(goal[row]):
                x = seen[row].expand_as(rounded)
                result[row] += chances @ speculative.output_distribution(x, x, rounded)
        return result


def proposal_probability(probs: Tensor, target: Tensor) -> Tensor:
    """Chance that the device takes each token as a proposal: (1 - probs / target)+.

    Zero where the target is 0: such a token is never proposed.
    """
    possible = target > 0
    ratio = probs / torch.where(possible, target, torch.ones_like(target))
    return torch.where(possible, (1 - ratio).clamp(min=0.0), 0.0)


class ScalarProposals:
    """The draft's probability up; on rejection a few samples of the target come down.

    Crosses the link: the draft's id and its 16-bit weight up; one bit down, and after a rejection
    n pairs (token z ~ y, 16-bit bar). With U uniform the bar is ceil(U y_z 2**16), and the device
    takes the first z with x_z 2**16 < bar. As x_z 2**16 is an integer that is x_z < U y_z, whose
    chance is (1 - x_z/y_z)+: exact, although y_z itself never travels. If none passes the device
    asks again. Rejection probability: TV(x, y), the least possible, for x the quantised device
    distribution; the expected number of proposals per escalated token that the device looks at is 1
    (1/TV(x, y) after each rejection).

    Parameters
    ----------
    proposals : int
        n, proposals per reply, >= 1.
    """

    name = "scalar-proposals"
    exact = True
    shared_draw = False
    needs = Need.PROBS
    crosses = "the draft's id and weight up; accepted, or proposals with bars, down"

    def __init__(self, proposals: int = DEFAULT_PROPOSALS) -> None:
        if proposals < 1:
            raise ValueError(f"proposals = {proposals}: allowed are values from 1")
        self.proposals = proposals

    def draft(self, probs: Tensor, keys: DrawKeys) -> Draft:
        """Quantise the distribution and draw from it; see `Verifier.draft`."""
        return _draft(probs, keys)

    def decide(self, target: Tensor, claim: Claim, keys: DrawKeys) -> Verdict:
        """Test the draft, propose where it is rejected or was before; see `Verifier.decide`."""
        exact = checked_target(target, claim)
        accepted = _accepts(exact, claim, keys)
        attempt = torch.zeros_like(claim.tokens) if claim.attempt is None else claim.attempt
        if attempt.shape != claim.tokens.shape or bool((attempt < 0).any()):
            raise ClaimError("attempt: allowed is one count from 0 per draft")
        accepted &= attempt == 0
        numbers = uniforms(keys, Purpose.RESAMPLE, 2 * self.proposals, attempt.numpy())
        tokens = draw(exact, numbers[:, : self.proposals])
        heights = numbers[:, self.proposals :] * exact.gather(1, tokens)
        bars = (heights * _UNITS).ceil().clamp(1, _UNITS).to(torch.int64)
        verdict = verdict_on(
            exact, claim.tokens, accepted, torch.where(accepted, claim.tokens, UNDECIDED)
        )
        rejected = ~accepted.unsqueeze(1)
        return replace(
            verdict,
            proposals=torch.where(rejected, tokens, UNDECIDED),
            bars=torch.where(rejected, bars, 0),
        )

    def finish(self, draft: Draft, verdict: Verdict, keys: DrawKeys) -> Tensor:
        """Take the first proposal that passes its bar; see `Verifier.finish`."""
        del keys
        open_rows = verdict.tokens == UNDECIDED
        if not bool(open_rows.any()):
            return verdict.tokens
        if verdict.proposals is None or verdict.bars is None:
            raise ClaimError("proposals and bars: needed to resample")
        proposals, bars = verdict.proposals[open_rows], verdict.bars[open_rows]
        probs = kept_distribution(draft)
        if bool(((proposals < 0) | (proposals >= probs.shape[1])).any()):
            raise ClaimError(f"proposals: allowed are ids from 0 to {probs.shape[1] - 1}")
        # the distribution was drawn from integer weights, so this product is an integer
        weights = probs[open_rows].gather(1, proposals) * _UNITS
        passes = weights < bars
        first = passes.to(torch.uint8).argmax(dim=-1, keepdim=True)
        chosen = torch.where(passes.any(dim=-1), proposals.gather(1, first).squeeze(1), UNDECIDED)
        tokens = verdict.tokens.clone()
        tokens[open_rows] = chosen
        return tokens

    def rejection_probability(self, probs: Tensor, target: Tensor) -> Tensor:
        """TV(quantised x, y)."""
        return total_variation(_quantised(probs), check_probs("target", target))

    def output_distribution(self, probs: Tensor, target: Tensor) -> Tensor:
        """Distribution of the token when the device asks until a proposal passes."""
        seen, goal = _quantised(probs), check_probs("target", target)
        kept = seen * speculative.accept_probability(seen, goal)
        rejected = (seen - kept).sum(dim=-1, keepdim=True)
        passing = goal * proposal_probability(seen, goal)
        total = passing.sum(dim=-1, keepdim=True)
        return kept + rejected * passing / torch.where(total > 0, total, 1.0)
