"""Every way of deciding an escalated token, behind one interface.

`VERIFIERS` maps the setting ``verification`` to a class; device and server build equal instances.
"""

from __future__ import annotations

from hlm.verification.coupled import Coupled
from hlm.verification.full import Full
from hlm.verification.greedy import Greedy
from hlm.verification.interface import (
    UNDECIDED,
    Claim,
    ClaimError,
    Draft,
    Need,
    Verdict,
    Verifier,
    total_variation,
)
from hlm.verification.scalar import Scalar
from hlm.verification.truncated import Truncated, TruncatedExact

__all__ = [
    "UNDECIDED",
    "VERIFIERS",
    "Claim",
    "ClaimError",
    "Coupled",
    "Draft",
    "Full",
    "Greedy",
    "Need",
    "Scalar",
    "Truncated",
    "TruncatedExact",
    "Verdict",
    "Verifier",
    "plain_verifier",
    "shares_draw",
    "total_variation",
]

VERIFIERS: dict[str, type[Verifier]] = {
    verifier.name: verifier
    for verifier in (Greedy, Full, Truncated, TruncatedExact, Scalar, Coupled)
}


def plain_verifier(decoding: str) -> str:
    """The verifier that asks for the LLM's own token, with nothing but an id going up."""
    return Greedy.name if decoding == "greedy" else Coupled.name


def shares_draw(verifier: str, decoding: str) -> bool:
    """Whether "what the LLM itself would have put there" is one definite token.

    So it is in greedy decoding, and where both sides draw with the same clocks.
    """
    return decoding == "greedy" or VERIFIERS[verifier].shared_draw
