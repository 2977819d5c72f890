"""Verifiers as the settings describe them: which one, and how much of a distribution it uploads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from hlm.line import UncertaintyLine
from hlm.truncation.count_rules import CountRule, FixedCount, OfflineBudget, OnlineCount
from hlm.verification import VERIFIERS, Truncated, TruncatedExact, Verifier

if TYPE_CHECKING:
    from fedhlm_app.settings import Settings

__all__ = ["build_verifier", "count_rule", "verifier_of"]

_TRUNCATED: dict[str, Callable[[CountRule], Verifier]] = {
    Truncated.name: Truncated,
    TruncatedExact.name: TruncatedExact,
}


def verifier_of(settings: Settings, line: UncertaintyLine | None = None) -> Verifier:
    """The device's half of the verification method of the settings.

    Parameters
    ----------
    settings : Settings
        `verification`, `truncation-k` and `theta-tv` are used.
    line : UncertaintyLine, optional
        From u = 1 - x_d to beta, for the k* rule; by default the one U-HLM published for its own
        pair of models (`hlm.line.UHLM_LINE`), which is what every run uses.
    """
    return build_verifier(settings.verifier, settings.truncation_k, settings.theta_tv, line)


def build_verifier(
    name: str,
    truncation_k: int = 0,
    theta_tv: float = 0.1,
    line: UncertaintyLine | None = None,
    budget: Literal["online", "offline"] = "online",
) -> Verifier:
    """A verifier by name.

    The server needs none of these parameters: whatever k a device chose is in its claim.

    Parameters
    ----------
    name : str
        A key of `hlm.verification.VERIFIERS`.
    truncation_k, theta_tv, line, budget
        For the truncated methods, see `count_rule`; the others ignore them.

    Raises
    ------
    ValueError
        For an unknown name, or a parameter out of range.
    """
    if name not in VERIFIERS:
        raise ValueError(f"verification = {name!r}: allowed are {', '.join(VERIFIERS)}")
    if name in _TRUNCATED:
        return _TRUNCATED[name](count_rule(truncation_k, theta_tv, line, budget))
    return VERIFIERS[name]()


def count_rule(
    truncation_k: int,
    theta_tv: float,
    line: UncertaintyLine | None = None,
    budget: Literal["online", "offline"] = "online",
) -> CountRule:
    """How many tokens of the distribution a truncated method uploads.

    Parameters
    ----------
    truncation_k : int
        The same k for every token, from 1; 0 for CU-HLM's k* rule.
    theta_tv : float
        Deviation the k* rule may leave, >= 0.
    line : UncertaintyLine, optional
        From u = 1 - x_d to the expected beta; by default U-HLM's published one.
    budget : {"online", "offline"}
        Whether every token keeps within `theta_tv`, or the mean over all tokens so far.

    Raises
    ------
    ValueError
        If a parameter is out of range.
    """
    if truncation_k < 0:
        raise ValueError(f"truncation-k = {truncation_k}: allowed are values from 0")
    if truncation_k:
        return FixedCount(truncation_k)
    coefficients = () if line is None else (line.slope, line.intercept)
    if budget == "offline":
        return OfflineBudget(theta_tv, *coefficients)
    return OnlineCount(theta_tv, *coefficients)
