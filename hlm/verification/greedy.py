"""Greedy decoding: the large model's most likely token always wins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hlm.arrays import Array
from hlm.randomness import DrawKeys
from hlm.sampling import check_probs, checked_top_token, top_token
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


class Greedy:
    """Accept the draft if it is the large model's top token; otherwise take the top token.

    Crosses the link: the draft's id up, the token down. Exact: the text is the large model's own
    greedy text, token for token. Rejection probability: 1 if the top tokens differ, else 0, which
    is the total variation of the two point masses.

    Only the maximum of a distribution counts here, so `target` may be the softmax values: its `ln
    y_d` is then a usable feedback where a point mass would say 0 or -inf.
    """

    name = "greedy"

    def draft(self, probs: Tensor, keys: DrawKeys) -> Draft:
        """Take the most likely token of each row; see `Verifier.draft`."""
        del keys
        exact = check_probs("probs", probs)
        tokens = top_token(exact)
        point_mass = exact.new_zeros(exact.shape).scatter_(1, tokens.unsqueeze(1), 1.0)
        return drafted(point_mass, tokens, Claim(tokens))

    def draft_top(self, logits: Tensor) -> Draft:
        """Take the most likely token of logits [rows, vocab]; no distribution is made or kept.

        Raises
        ------
        ValueError
            As `hlm.sampling.distribution`.
        """
        tokens = checked_top_token(logits).cpu()
        return Draft(tokens, tokens.new_ones(len(tokens)).double(), None, Claim(tokens))

    def decide(self, target: Tensor, claim: Claim, keys: DrawKeys) -> Verdict:
        """Compare with the target's top token; see `Verifier.decide`."""
        del keys
        exact = checked_target(target, claim)
        tokens = top_token(exact)
        return Verdict(tokens == claim.tokens, tokens)

    def finish(self, draft: Draft, verdict: Verdict, keys: DrawKeys) -> Array:
        """Take the server's token; see `Verifier.finish`."""
        del draft, keys
        return decided_tokens(verdict)
