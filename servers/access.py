"""Who may ask a served LLM: a bearer token in front, a certificate for the way there."""

from __future__ import annotations

import hashlib
import hmac
import ssl
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

OPEN_PATHS = ("/health",)
"""What load balancers ask, and what tells nothing of texts or models."""


class BearerToken:
    """Answers requests that do not bring the token with 401, before their body is read.

    Parameters
    ----------
    app : ASGI application
        What the token opens.
    token : str
        What callers must send in ``Authorization: Bearer``.
    on_refusal : callable
        Called for each request that is refused.
    """

    def __init__(self, app: ASGIApp, token: str, on_refusal: Callable[[], None]) -> None:
        self.app = app
        self._digest = _digest(token)
        self._on_refusal = on_refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._admits(scope):
            await self.app(scope, receive, send)
            return
        self._on_refusal()
        response = PlainTextResponse(
            "a bearer token is wanted, or another one", 401, {"www-authenticate": "Bearer"}
        )
        await response(scope, receive, send)

    def _admits(self, scope: Scope) -> bool:
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        # Digests are equally long: the time to compare them tells nothing of the token.
        same = hmac.compare_digest(_digest(given.strip()), self._digest)
        return same and scheme.lower() == "bearer"


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", errors="surrogateescape")).digest()


def check_certificate(certificate: str, key: str) -> None:
    """Refuse a certificate that no server could use.

    Parameters
    ----------
    certificate : str
        PEM file with the server's certificate, and those between it and its authority.
    key : str
        PEM file with its private key; empty: it is in the same file.

    Raises
    ------
    ValueError
        Naming the files and what is wrong with them.
    """
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            certificate, key or None, password=_no_password
        )
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ValueError(
            f"--tls-cert = {certificate!r}, --tls-key = {key!r}: no certificate with its key in "
            f"PEM ({reason})"
        ) from None


def _no_password() -> str:
    raise ValueError("the key has a password, which a server cannot be asked for")
