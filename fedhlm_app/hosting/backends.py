"""What may run the large model, by the name that the setting `llm-backend` gives it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedhlm_app.settings import Settings, SettingsError
from hlm.verifiers import VERIFIERS, Need, served_verifiers

if TYPE_CHECKING:
    from servers.backend import Backend


@dataclass(frozen=True)
class BackendKind:
    """How a backend is made, and the most that it says of a next token.

    Attributes
    ----------
    offers : Need
        Known before anything is loaded.
    build : callable
        From the settings, and what follows the name and a colon in `llm-backend`.
    check : callable
        Raises ValueError, naming what is allowed, if what follows the colon will not do.
    """

    offers: Need
    build: Callable[[Settings, str], Backend]
    check: Callable[[str], object] = str


def pace_of(argument: str) -> float:
    """Least seconds of a pass, from the ms behind ``engine:``; 0 where nothing is there."""
    try:
        ms = float(argument or 0)
    except ValueError:
        ms = -1.0
    if not 0 <= ms <= 60_000:
        raise ValueError("engine, or engine:MS for passes of at least so many ms, 0 to 60000")
    return ms / 1000


def build_engine(settings: Settings, argument: str) -> Backend:
    """The engine of this project, with the model that `llm` names."""
    # Imported by the process that runs the model; others only ask what there is.
    from fedhlm_app.models.load import load_llm
    from fedhlm_app.models.torch_names import torch_device, torch_dtype
    from servers.engine.engine import Engine, context_limit

    model = load_llm(
        settings.llm,
        torch_dtype(settings.llm_dtype),
        torch_device(settings.llm_device, "llm-device"),
    )
    context = min(settings.llm_context, context_limit(model))
    return Engine(model, settings.llm_sessions, context, pace=pace_of(argument))


BACKENDS = {
    "engine": BackendKind(Need.PROBS, build_engine, pace_of),
}


def check_backend(settings: Settings) -> None:
    """Refuse a backend that is not registered, or that cannot serve the run's verifier.

    Raises
    ------
    SettingsError
        Naming the settings and what fits.
    """
    name, _, argument = settings.llm_backend.partition(":")
    if name not in BACKENDS:
        raise SettingsError(
            f"setting 'llm-backend' = {settings.llm_backend!r} is not allowed: "
            f"one of {', '.join(BACKENDS)}"
        )
    try:
        BACKENDS[name].check(argument)
    except ValueError as error:
        raise SettingsError(
            f"setting 'llm-backend' = {settings.llm_backend!r} is not allowed: {error}"
        ) from None
    offers = BACKENDS[name].offers
    if VERIFIERS[settings.verifier].needs > offers:
        raise SettingsError(
            f"settings 'llm-backend' = {settings.llm_backend!r} and 'verification' = "
            f"{settings.verifier!r}: it needs whole distributions of the next token, which this "
            f"backend does not tell; with it: {', '.join(served_verifiers(offers))}"
        )


def build_backend(settings: Settings) -> Backend:
    """The backend that `llm-backend` names; its model is loaded."""
    name, _, argument = settings.llm_backend.partition(":")
    return BACKENDS[name].build(settings, argument)
