"""Verifiers as the settings describe them: which one, and how much of a distribution it uploads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hlm.line import UncertaintyLine
from hlm.truncation.count_rules import CountRule, FixedCount, OnlineCount
from hlm.verification import VERIFIERS, Truncated, TruncatedExact, Verifier

if TYPE_CHECKING:
    from fedhlm_app.settings import Settings

__all__ = ["build_verifier", "verifier_of"]

_TRUNCATED: dict[str, Callable[[CountRule], Verifier]] = {
    Truncated.name: Truncated,
    TruncatedExact.name: TruncatedExact,
}


def verifier_of(settings: Settings) -> Verifier:
    """The device's half of the verification method of the settings."""
    return build_verifier(settings.verifier, settings.truncation_k, settings.theta_tv)


def build_verifier(
    name: str,
    truncation_k: int = 0,
    theta_tv: float = 0.1,
    line: UncertaintyLine | None = None,
) -> Verifier:
    """A verifier by name.

    The server needs none of these parameters: whatever k a device chose is in its claim.

    Parameters
    ----------
    name : str
        A key of `hlm.verification.VERIFIERS`.
    truncation_k : int
        Tokens of each distribution that a truncated method uploads, from 1; 0: CU-HLM's k* rule.
    theta_tv : float
        Deviation the k* rule may leave, >= 0.
    line : UncertaintyLine, optional
        From u = 1 - x_d to the expected beta, for the k* rule; by default the one U-HLM published
        for its own pair of models (`hlm.line.UHLM_LINE`), which is what every run uses.

    Raises
    ------
    ValueError
        For an unknown name, or a parameter out of range.
    """
    if name not in VERIFIERS:
        raise ValueError(f"verification = {name!r}: allowed are {', '.join(VERIFIERS)}")
    if name not in _TRUNCATED:
        return VERIFIERS[name]()
    if truncation_k < 0:
        raise ValueError(f"truncation-k = {truncation_k}: allowed are values from 0")
    if truncation_k:
        return _TRUNCATED[name](FixedCount(truncation_k))
    coefficients = () if line is None else (line.slope, line.intercept)
    return _TRUNCATED[name](OnlineCount(theta_tv, *coefficients))
