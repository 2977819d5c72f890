"""Every way of deciding an escalated token, behind one interface.

`hlm.verifiers.VERIFIERS` has them by name; device and server make equal ones. Those that are not
named here need PyTorch on the device too.
"""

from __future__ import annotations

from hlm.verification.coupled import Coupled
from hlm.verification.greedy import Greedy
from hlm.verification.interface import (
    UNDECIDED,
    Claim,
    ClaimError,
    Draft,
    Verdict,
    Verifier,
)
from hlm.verifiers import VERIFIERS, Need, plain_verifier, shares_draw

__all__ = [
    "UNDECIDED",
    "VERIFIERS",
    "Claim",
    "ClaimError",
    "Coupled",
    "Draft",
    "Greedy",
    "Need",
    "Verdict",
    "Verifier",
    "plain_verifier",
    "shares_draw",
]
