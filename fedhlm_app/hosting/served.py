"""A served LLM from settings, whatever carries its requests: one process, or replicas."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fedhlm_app.settings import Settings

if TYPE_CHECKING:
    from servers.access import Tokens
    from servers.service import ServedLanguageModel

ANSWERED_WITHIN = 0.9
"""Share of `llm-timeout` after which the server gives up an answer."""


def build_served(settings: Settings, queue: int, tokens: Tokens | None) -> ServedLanguageModel:
    """Load the model and put the web application around it.

    Parameters
    ----------
    settings : Settings
        Those of the LLM.
    queue : int
        Requests that may wait at a time, >= 1.
    tokens : Tokens, optional
        Those of which callers must bring one.
    """
    from fedhlm_app.hosting.llm import build_service
    from fedhlm_app.hosting.pairs import ids_on_the_wire
    from fedhlm_app.models.vocabulary import fingerprint
    from servers.service import ServedLanguageModel, ServiceOptions

    options = ServiceOptions(
        wait=settings.llm_batch_wait_ms / 1000,
        # A server elsewhere puts its passes together by itself.
        most=1 if settings.reproducible and settings.loads_llm else 64,
        queue=queue,
        # What a device no longer waits for need not be answered.
        answer_seconds=ANSWERED_WITHIN * settings.llm_timeout,
    )
    service = build_service(settings)
    _, speaking = ids_on_the_wire(settings)
    return ServedLanguageModel(service, options, settings.llm, tokens, fingerprint(speaking))


def read_tokens(
    token_file: str, named: str, environ: Mapping[str, str] | None = None
) -> Tokens | None:
    """Tokens that callers must bring one of; None where there are none.

    Parameters
    ----------
    token_file : str
        Holds one for all, or is the ``devices.json`` of `fedhlm keys`; empty: none.
    named : str
        What an error calls the file.
    environ : mapping
        Where a token may be that is in no file; `os.environ` when None.

    Raises
    ------
    ValueError, OSError
        When the file is not there or holds something else.
    """
    from fedhlm_app.transport.llm_access import read_token
    from servers.access import Tokens

    if token_file.endswith(".json"):
        return Tokens(file=Path(token_file))
    token = read_token(token_file, named, environ)
    return Tokens(token) if token else None
