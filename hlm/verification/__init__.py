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
    Verdict,
    Verifier,
    total_variation,
)
from hlm.verification.scalar import Scalar, ScalarProposals
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
    "Scalar",
    "ScalarProposals",
    "Truncated",
    "TruncatedExact",
    "Verdict",
    "Verifier",
    "total_variation",
]

VERIFIERS: dict[str, type[Verifier]] = {
    verifier.name: verifier
    for verifier in (Greedy, Full, Truncated, TruncatedExact, Scalar, ScalarProposals, Coupled)
}
