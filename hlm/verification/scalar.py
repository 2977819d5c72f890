"""Token and probability only: the device learns the rest when its draft is rejected.

After DSSD (arXiv 2507.12000): the server tests the draft with x_d alone; on rejection y
comes down in 16-bit integers and the device, which knows x, resamples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hlm.arrays import Array
from hlm.randomness import DrawKeys, Purpose, uniforms
from hlm.sampling import draw
from hlm.truncation.quantising import probs_from_weights, quantise, quantise_dithered
from hlm.verification import speculative
from hlm.verification.full import PROBABILITY_BITS
from hlm.verification.interface import (
    UNDECIDED,
    Claim,
    ClaimError,
    Draft,
    Verdict,
    checked_target,
    drafted,
    kept_distribution,
)

_UNITS = 2**PROBABILITY_BITS


def _claimed_probability(claim: Claim) -> Tensor:
    weight = claim.weight
    if weight is None or weight.shape != claim.tokens.shape:
        raise ClaimError("weight: the scalar method needs one per draft")
    if weight.numel() and not 1 <= int(weight.min()) <= int(weight.max()) <= _UNITS:
        raise ClaimError(
            f"weight holds {int(weight.min())} to {int(weight.max())}: allowed are 1 to {_UNITS}"
        )
    return weight.to(torch.float64).mul(1 / _UNITS)


def _accepts(target: Tensor, claim: Claim, keys: DrawKeys) -> Tensor:
    of_draft = target.gather(1, claim.tokens.unsqueeze(1)).squeeze(1)
    chance = speculative.accept_probability(_claimed_probability(claim), of_draft)
    return uniforms(keys, Purpose.ACCEPT, 1).squeeze(1) < chance


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

    def draft(self, probs: Tensor, keys: DrawKeys) -> Draft:
        """Quantise the distribution and draw from it; see `Verifier.draft`."""
        weights = quantise(probs, PROBABILITY_BITS)
        quantised = probs_from_weights(weights, PROBABILITY_BITS)
        tokens = draw(quantised, uniforms(keys, Purpose.DRAFT, 1).squeeze(1))
        weight = weights.gather(1, tokens.unsqueeze(1)).squeeze(1)
        return drafted(quantised, tokens, Claim(tokens, weight=weight))

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
        return Verdict(accepted, tokens, target_weights=sent)

    def finish(self, draft: Draft, verdict: Verdict, keys: DrawKeys) -> Array:
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
