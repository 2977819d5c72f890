"""The way to a served LLM, from the settings and, for what must stay secret, from elsewhere."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import closing
from logging import getLogger
from pathlib import Path
from typing import Any

from fedhlm_app.models.vocabulary import fingerprint, vocabulary_size
from fedhlm_app.settings import Settings, SettingsError
from fedhlm_app.settings.address import TOKEN_VARIABLE, parse_address, speaks_openai
from fedhlm_app.transport.http_transport import HttpTransport
from hlm.transport import LinkDown, LinkRefused

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{16,4096}=*")
"""What RFC 6750 calls b64token, and long enough not to be guessed."""

logger = getLogger(__name__)

CHECK_SECONDS = 10.0
"""Longest wait for the server before a run."""


def read_token(file: str, named: str, environ: Mapping[str, str] | None = None) -> str:
    """The bearer token of the LLM server, for a device or for the server itself.

    Parameters
    ----------
    file : str
        Path of a file that holds the token and nothing else; empty: look into the environment.
    named : str
        What the user calls this file, for errors: a setting or an option.
    environ : mapping
        Environment, in which FEDHLM_LLM_TOKEN may hold the token; `os.environ` when None.

    Returns
    -------
    str
        Empty where there is none.

    Raises
    ------
    SettingsError
        When the file cannot be read, or does not hold a token; the token is not repeated.
    """
    if file:
        where = f"{named} = {file!r}"
        try:
            found = Path(file).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no text"
            raise SettingsError(f"{where}: cannot be read: {reason}") from None
    else:
        where = f"environment variable {TOKEN_VARIABLE}"
        found = (os.environ if environ is None else environ).get(TOKEN_VARIABLE, "").strip()
        if not found:
            return ""
    if not _TOKEN.fullmatch(found):
        raise SettingsError(
            f"{where}: holds no bearer token; allowed are 16 to 4096 letters, digits and -._~+/ "
            "(`openssl rand -hex 32` makes one)"
        )
    return found


def llm_link(settings: Settings, timeout: float | None = None) -> HttpTransport:
    """The link of a device to the LLM at `llm-address`.

    Parameters
    ----------
    settings : Settings
        With an address.
    timeout : float
        Seconds to wait for an answer; `llm-timeout` when None.

    Raises
    ------
    SettingsError
        When the CA file or the token cannot be used, or a token would travel in the clear.
    """
    if speaks_openai(settings.llm_address):
        raise SettingsError(
            f"setting 'llm-address' = {settings.llm_address!r}: speaks OpenAI's API, not this "
            "project's; devices of a run reach it behind `fedhlm serve llm --backend openai --url "
            f"{settings.llm_address}`, those of a simulation by llm-backend=openai:URL"
        )
    wait = settings.llm_timeout if timeout is None else timeout
    return link_to(settings, "llm-address", settings.llm_address, wait)


def link_to(settings: Settings, name: str, address: str, timeout: float) -> HttpTransport:
    """The link to a server of the run, with the run's authorities and token.

    Parameters
    ----------
    settings : Settings
        Of the run.
    name, address : str
        The setting that names the server, and what it says.
    timeout : float
        Seconds to wait for an answer.

    Raises
    ------
    SettingsError
        When the CA file or the token cannot be used, or a token would travel in the clear.
    """
    parsed = parse_address(address, name)
    token = read_token(settings.llm_token_file, "setting 'llm-token-file'")
    if token and not (parsed.secure or parsed.loopback):
        raise SettingsError(
            f"setting {name!r} = {address!r}: the bearer token would travel "
            "unencrypted; use an https:// address, or leave the token out (llm-token-file, "
            f"{TOKEN_VARIABLE})"
        )
    try:
        return HttpTransport(
            address,
            timeout,
            ca_file=settings.llm_ca_file,
            token=token,
            named="LLM server" if name == "llm-address" else "edge server",
            setting=name,
        )
    except OSError as error:
        raise SettingsError(
            f"setting 'llm-ca-file' = {settings.llm_ca_file!r}: no file of certificates in PEM "
            f"({error.strerror or error})"
        ) from None


def require_access(settings: Settings) -> HttpTransport:
    """The link of a device that goes on without the LLM, but not with a setting that is wrong.

    Raises
    ------
    SettingsError
        When the server is there, and does not accept the device's token, is not to be trusted, does
        not serve its verifier or means other text by its token ids.
    """
    with closing(llm_link(settings, _patience(settings))) as link:
        try:
            told = link.stats()
            require_verifier(settings, told)
            require_tokens(settings, "slm", settings.slm, told)
        except LinkRefused as error:
            raise SettingsError(f"setting 'llm-address': {error}") from None
        except LinkDown as error:
            logger.warning("%s; it will be tried again", error)
    return llm_link(settings)


def require_verifier(settings: Settings, told: Mapping[str, Any]) -> None:
    """Refuse an LLM that cannot decide tokens the way the settings name.

    Raises
    ------
    SettingsError
        Naming what it serves.
    """
    # A server of an earlier version does not tell.
    served = told.get("verifiers", [settings.verifier])
    if settings.verifier not in served:
        raise SettingsError(
            f"setting 'verification' = {settings.verifier!r}: the LLM"
            + (f" at '{settings.llm_address}'" if settings.llm_address else "'s actor")
            + " does not tell the distributions that this needs; with it: "
            + ", ".join(served)
        )


def served_llm(settings: Settings, told: Mapping[str, Any]) -> str:
    """What messages call the LLM that said this of itself."""
    served = f"the LLM at '{settings.llm_address}'" if settings.llm_address else "the LLM's actor"
    return served + (f" ('{told['model']}')" if told.get("model") else "")


def require_tokens(settings: Settings, role: str, model: str, told: Mapping[str, Any]) -> None:
    """Refuse an LLM that means other text by a device's token ids, or cannot choose all of them.

    Parameters
    ----------
    settings : Settings
        Of the device or the run.
    role, model : str
        Whose token ids go up: the setting, and the model that it names.
    told : mapping
        What the LLM says of itself.

    Raises
    ------
    SettingsError
        Naming both models.
    """
    fitting = "serve the LLM of this pair (--llm; with another tokenizer, --slm too)"
    # A server of an earlier version does not tell.
    if told.get("tokenizer") and told["tokenizer"] != fingerprint(model):
        raise SettingsError(
            f"setting {role!r} = {model!r}: {served_llm(settings, told)} has another tokenizer, so "
            f"that its token ids mean other text; {fitting}"
        )
    expected = vocabulary_size(model)
    if expected is not None and told.get("vocab", expected) < expected:
        raise SettingsError(
            f"setting {role!r} = {model!r} has a vocabulary of {expected} tokens, and "
            f"{served_llm(settings, told)} one of {told['vocab']}; {fitting}"
        )


def check_llm(settings: Settings) -> dict[str, Any]:
    """Ask the LLM at `llm-address` what it is, before anything is started.

    Returns
    -------
    dict
        What ``/v1/stats`` says: model, vocabulary, limits, counters.

    Raises
    ------
    SettingsError
        One line that says why it serves no run: not reached, no trust in its certificate, or the
        token refused.
    """
    with closing(llm_link(settings, _patience(settings))) as link:
        try:
            found = link.stats()
        except LinkDown as error:
            raise SettingsError(f"setting 'llm-address': {error}") from None
    limit = found.get("answer_seconds")
    if isinstance(limit, int | float) and limit >= settings.llm_timeout:
        raise SettingsError(
            f"setting 'llm-timeout' = {settings.llm_timeout:g}: the LLM server at "
            f"{settings.llm_address} may take {limit:g} s to answer; allowed is more than that, or "
            "give the server the same llm-timeout"
        )
    return found


def _patience(settings: Settings) -> float:
    return min(CHECK_SECONDS, settings.llm_timeout)
