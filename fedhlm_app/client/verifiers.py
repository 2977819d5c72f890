"""The verifier that the settings describe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hlm.line import UncertaintyLine
from hlm.verification import VERIFIERS, Verifier

if TYPE_CHECKING:
    from fedhlm_app.settings import Settings


def verifier_of(
    settings: Settings, name: str | None = None, line: UncertaintyLine | None = None
) -> Verifier:
    """The device's half of a verification method, with the settings that are its own.

    Parameters
    ----------
    settings : Settings
        Of the run.
    name : str, optional
        A key of `hlm.verifiers.VERIFIERS`; by default that of the settings.
    line : UncertaintyLine, optional
        From u = 1 - x_d to beta, for methods with a k* rule; by default the one U-HLM published
        for its own pair of models (`hlm.line.UHLM_LINE`), which is what every run uses.
    """
    kind = VERIFIERS[name or settings.verifier]
    options: dict[str, Any] = {option: getattr(settings, option) for option in kind.options}
    if line is not None and "theta_tv" in options:
        options["line"] = line
    return kind(**options)
