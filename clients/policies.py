"""Every policy by name, for settings that do not load what decides (`clients.policy`)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PolicyKind:
    """A value of `policy`.

    Attributes
    ----------
    words : str
        Which drafts it keeps, for settings and documents.
    learns : bool
        Whether its parameters are what a federation learns.
    """

    words: str
    learns: bool = False


POLICIES = {
    "threshold": PolicyKind("those up to a learned uncertainty", learns=True),
    "random": PolicyKind("all but a random share"),
    "always": PolicyKind("every draft"),
    "never": PolicyKind("none"),
    "u-hlm": PolicyKind("those up to where U-HLM's line says", learns=True),
    "router": PolicyKind("those up to a learned score", learns=True),
}
