"""HLM: the device sends its whole distribution and the server does the rest."""

from __future__ import annotations

import torch
from torch import Tensor

from hlm.arrays import Array
from hlm.randomness import DrawKeys, Purpose, uniforms
from hlm.sampling import draw
from hlm.truncation.quantising import probs_from_weights, quantise
from hlm.verification import speculative
from hlm.verification.interface import (
    Claim,
    ClaimError,
    Draft,
    Verdict,
    checked_target,
    decided_tokens,
    drafted,
)

PROBABILITY_BITS = 16


def accept_or_resample(seen: Tensor, target: Tensor, drafts: Tensor, keys: DrawKeys) -> Verdict:
    """Speculative sampling by a server that sees a distribution of the device.

    Parameters
    ----------
    seen, target : Tensor of float64 [rows, vocab]
    drafts : Tensor of int64 [rows]
    keys : DrawKeys

    Returns
    -------
    Verdict
        Every row decided.
    """
    index = drafts.unsqueeze(1)
    chance = speculative.accept_probability(seen.gather(1, index), target.gather(1, index))
    accepted = (uniforms(keys, Purpose.ACCEPT, 1) < chance).squeeze(1)
    replacement = draw(
        speculative.residual(seen, target), uniforms(keys, Purpose.RESAMPLE, 1).squeeze(1)
    )
    return Verdict(accepted, torch.where(accepted, drafts, replacement))


class Full:
    """Speculative sampling with the whole device distribution at the server (HLM, FedHLM eq. 3).

    Crosses the link: the draft's id and one 16-bit weight per vocabulary entry up, the token down.
    Exact, because the draft is drawn from the very distribution that is sent, the quantised one.
    Rejection probability: TV(x, y), the least possible, for x the quantised distribution.
    """

    name = "full"

    def draft(self, probs: Tensor, keys: DrawKeys) -> Draft:
        """Quantise the distribution and draw from it; see `Verifier.draft`."""
        weights = quantise(probs, PROBABILITY_BITS)
        quantised = probs_from_weights(weights, PROBABILITY_BITS)
        tokens = draw(quantised, uniforms(keys, Purpose.DRAFT, 1).squeeze(1))
        return drafted(quantised, tokens, Claim(tokens, weights=weights))

    def decide(self, target: Tensor, claim: Claim, keys: DrawKeys) -> Verdict:
        """Accept or resample; see `Verifier.decide`."""
        exact = checked_target(target, claim)
        if claim.weights is None or claim.weights.shape != exact.shape:
            raise ClaimError(f"weights: the full method needs them as {tuple(exact.shape)}")
        try:
            seen = probs_from_weights(claim.weights, PROBABILITY_BITS)
        except ValueError as error:
            raise ClaimError(str(error)) from error
        return accept_or_resample(seen, exact, claim.tokens, keys)

    def finish(self, draft: Draft, verdict: Verdict, keys: DrawKeys) -> Array:
        """Take the server's token; see `Verifier.finish`."""
        del draft, keys
        return decided_tokens(verdict)
