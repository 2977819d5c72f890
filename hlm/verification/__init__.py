"""Every way of deciding an escalated token, behind one interface.

`hlm.verifiers.VERIFIERS` has them by name; device and server make equal ones.
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
)
from hlm.verification.scalar import Scalar
from hlm.verification.truncated import Truncated, TruncatedExact
from hlm.verifiers import VERIFIERS, Need, plain_verifier, shares_draw

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
]
