"""CU-HLM: the device sends the top of its distribution; the server spreads the rest evenly.

Two variants differ in where the draft comes from. The paper's draws it from x and tests it against
the truncated xhat, which is biased. Drawing it from xhat is exact at any k.
"""

from __future__ import annotations

from torch import Tensor

from hlm.arrays import Array
from hlm.line import UncertaintyLine
from hlm.randomness import DrawKeys, Purpose, uniforms
from hlm.sampling import check_probs, draw
from hlm.truncation.count_rules import CountRule, count_rule
from hlm.truncation.truncate import spread, truncate
from hlm.verification.full import accept_or_resample
from hlm.verification.interface import (
    Claim,
    ClaimError,
    Draft,
    Verdict,
    checked_target,
    decided_tokens,
    drafted,
)

DEFAULT_COUNT = 30  # the k of CU-HLM's own table


class _TruncatedUpload:
    """The server's half, which both variants share."""

    def __init__(
        self,
        truncation_k: int = DEFAULT_COUNT,
        theta_tv: float = 0.1,
        line: UncertaintyLine | None = None,
    ) -> None:
        self.rule: CountRule = count_rule(truncation_k, theta_tv, line)

    def decide(self, target: Tensor, claim: Claim, keys: DrawKeys) -> Verdict:
        """Accept or resample with the truncated distribution; see `Verifier.decide`."""
        exact = checked_target(target, claim)
        if claim.support is None or claim.weights is None or claim.counts is None:
            raise ClaimError("support, weights and counts: the truncated methods need all three")
        try:
            seen = spread(claim.support, claim.weights, claim.counts, exact.shape[1])
        except ValueError as error:
            raise ClaimError(str(error)) from error
        if seen.shape != exact.shape:
            raise ClaimError(f"support has {seen.shape[0]} rows: {exact.shape[0]} are needed")
        return accept_or_resample(seen, exact, claim.tokens, keys)

    def finish(self, draft: Draft, verdict: Verdict, keys: DrawKeys) -> Array:
        """Take the server's token; see `Verifier.finish`."""
        del draft, keys
        return decided_tokens(verdict)


class Truncated(_TruncatedUpload):
    """CU-HLM as in the paper: draft from x, verify against xhat.

    Crosses the link: the draft's id, the ids and 8-bit weights of the top k up; the token down.
    Not exact: the output's distribution is at most TV(x, xhat) away from the target when k does not
    depend on the draft. (Drafts from xhat would give the target exactly; the same channel from
    draft to token, fed x instead, cannot widen the distance.) The k* rule looks at the draft,
    and no such bound is claimed for it. Rejection probability:
    sum_d x_d (1 - y_d/xhat_d)+.

    Parameters
    ----------
    truncation_k, theta_tv, line
        How k is chosen, see `count_rule`; 30 tokens by default.
    """

    name = "truncated"

    def draft(self, probs: Tensor, keys: DrawKeys) -> Draft:
        """Draw from the whole distribution, truncate what goes up; see `Verifier.draft`."""
        exact = check_probs("probs", probs)
        tokens = draw(exact, uniforms(keys, Purpose.DRAFT, 1).squeeze(1))
        probabilities = exact.gather(1, tokens.unsqueeze(1)).squeeze(1)
        counts = self.rule.choose(exact, probabilities.clamp(max=1.0))
        support, weights = truncate(exact, counts)
        claim = Claim(tokens, support=support, weights=weights, counts=counts)
        return drafted(exact, tokens, claim)


class TruncatedExact(_TruncatedUpload):
    """Draft from the truncated distribution xhat itself, verify against it.

    Crosses the link: the draft's id, the ids and 8-bit weights of the top k up; the token down.
    Exact at any k: draft and test use one distribution, and k is chosen before the draft, with the
    most likely token in the draft's place. Rejection probability: TV(xhat, y), at most TV(x, xhat)
    more than the least possible.

    Parameters
    ----------
    truncation_k, theta_tv, line
        How k is chosen, see `count_rule`; 30 tokens by default.
    """

    name = "truncated-exact"

    def _truncated(self, probs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        exact = check_probs("probs", probs)
        counts = self.rule.choose(exact, exact.amax(dim=-1).clamp(max=1.0))
        support, weights = truncate(exact, counts)
        return support, weights, counts, spread(support, weights, counts, exact.shape[1])

    def draft(self, probs: Tensor, keys: DrawKeys) -> Draft:
        """Truncate, then draw from what is left; see `Verifier.draft`."""
        support, weights, counts, truncated = self._truncated(probs)
        tokens = draw(truncated, uniforms(keys, Purpose.DRAFT, 1).squeeze(1))
        claim = Claim(tokens, support=support, weights=weights, counts=counts)
        return drafted(truncated, tokens, claim)
