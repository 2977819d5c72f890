"""What may run the large model, by the name that the setting `llm-backend` gives it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedhlm_app.settings import Settings, SettingsError
from fedhlm_app.settings.address import parse_address
from hlm.verifiers import VERIFIERS, Need, served_verifiers

if TYPE_CHECKING:
    from servers.backend import Backend


HEARD_WITHIN = 0.8
"""Share of `llm-timeout` after which a server elsewhere is given up, so that devices hear why."""


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


def openai_server(argument: str) -> tuple[str, str]:
    """URL and model, which may be empty, from what stands behind ``openai:``, ``URL#MODEL``."""
    url, _, model = argument.partition("#")
    try:
        if "://" not in url:
            raise ValueError
        parse_address(url)
    except ValueError:
        raise ValueError(
            "openai:URL or openai:URL#MODEL with an http(s) URL, for example "
            "openai:http://127.0.0.1:8000/v1; a key belongs into FEDHLM_LLM_KEY"
        ) from None
    return url, model


def build_openai(settings: Settings, argument: str) -> Backend:
    """Any server that speaks OpenAI's API, whose model has the tokenizer that `llm` names."""
    from fedhlm_app.models.vocabulary import load_tokenizer, vocabulary_size
    from servers.openai.backend import OpenAIBackend
    from servers.openai.client import KEY_VARIABLE, Client
    from servers.openai.dialect import choose_model, find_dialect
    from servers.words import Words

    url, model = openai_server(argument)
    key, address = os.environ.get(KEY_VARIABLE, "").strip(), parse_address(url)
    if key and not (address.secure or address.loopback):
        raise SettingsError(
            f"{url}: the key would travel unencrypted; give an https:// URL, or leave the key out "
            f"({KEY_VARIABLE})"
        )
    client = Client(
        url,
        HEARD_WITHIN * settings.llm_timeout,
        key,
        settings.llm_ca_file,
        proxies=not address.loopback,
    )
    words = Words(load_tokenizer(settings.llm))
    name, longest = choose_model(client, model)
    dialect = find_dialect(client, name, words, settings.llm)
    context = min(settings.llm_context, longest or settings.llm_context)
    vocab = max(vocabulary_size(settings.llm) or 0, words.size)
    return OpenAIBackend(client, name, words, dialect, vocab, settings.llm_sessions, context)


BACKENDS = {
    "engine": BackendKind(Need.PROBS, build_engine, pace_of),
    "openai": BackendKind(Need.TOP, build_openai, openai_server),
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
            # A password is not repeated.
            f"setting 'llm-backend' = '{name}:{'...' if '@' in argument else argument}' is not "
            f"allowed: {error}"
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
