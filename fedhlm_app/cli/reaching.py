"""The LLM of a command that writes texts: loaded in its own process, or served elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

import typer

from fedhlm_app.settings import Settings, SettingsError
from fedhlm_app.settings.address import speaks_openai

if TYPE_CHECKING:
    from hlm.transport import Transport

PATIENCE = 2.0
"""Seconds after which somebody who waits is told what for."""


@contextmanager
def told_of_loading() -> Iterator[None]:
    """Say on standard error that models are being loaded, once it takes long."""
    timer = threading.Timer(PATIENCE, typer.echo, ["loading the models ..."], {"err": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def reach_llm(settings: Settings, threads: int) -> Transport:
    """The way to the LLM, which is loaded here unless `llm-address` says where it is served.

    Parameters
    ----------
    settings : Settings
        Both models are checked. An `llm-address` whose path ends in ``/v1`` is a server that speaks
        OpenAI's API, whose tokenizer `llm` names.
    threads : int
        Processor threads of all models of this process, >= 1.

    Raises
    ------
    ValueError, OSError
        When a model cannot be had, they are no pair, or the server does not let this device in.
    """
    from clients.decoding.steps import Runtime
    from fedhlm_app.models.sources import BUILTIN, check_folder
    from fedhlm_app.transport.llm_access import require_access

    Runtime.threads = threads
    lean = find_spec("torch") is None
    if not lean:
        import torch

        from fedhlm_app.server.preflight import check_devices

        torch.set_num_threads(threads)
        check_devices(settings)
    check_folder(settings.slm, "slm", lean=True)
    if settings.llm_address and not speaks_openai(settings.llm_address):
        return require_access(settings)
    if lean:
        raise SettingsError(
            f"setting 'llm-address' = {settings.llm_address!r}: without PyTorch the LLM is "
            "elsewhere, behind `fedhlm serve llm`; allowed is the address of one, as host:port or "
            "URL"
        )
    from fedhlm_app.hosting.pairs import build_pair, check_pair
    from fedhlm_app.transport.transports import DirectTransport
    from servers.llm import LanguageModelService

    if settings.llm_address:
        # Its tokenizer is the small model's, unless another one is named.
        own = settings.slm if settings.llm == BUILTIN else settings.llm
        backend = f"openai:{settings.llm_address}"
        update = {"llm_backend": backend, "llm_address": "", "llm": own}
        settings = settings.model_copy(update=update)
    check_folder(settings.llm, "llm", weights=settings.loads_llm)
    check_pair(settings)
    return DirectTransport(LanguageModelService(build_pair(settings)))
