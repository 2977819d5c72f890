"""Who may ask a server: bearer tokens in front, a certificate for the way there."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import ssl
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

WANTED = "a bearer token is wanted, or another one"

_NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_DEVICE = re.compile(f"({_NAME}/)?{_NAME}")
_DIGEST = re.compile(r"[0-9a-f]{64}")

logger = logging.getLogger(__name__)


class Tokens:
    """Bearer tokens that open a server: one for all, or one for each device.

    Parameters
    ----------
    token : str
        One for all; empty: none.
    file : Path, optional
        Tokens of devices, as digests (`DeviceTokens`), read again whenever it has changed. One
        that cannot be read leaves those before it in force, and the log says why.

    Raises
    ------
    ValueError, OSError
        When the file is not there or holds something else.
    """

    def __init__(self, token: str = "", file: Path | None = None) -> None:
        self._devices = {digest(token): ""} if token else {}
        self._file = file
        self._seen: object = None
        if file is not None:
            self._take_up(file)

    def device(self, given: str) -> str | None:
        """Whose token this is: the name of a device, nothing if it is that of all; None: refused.

        Found by its SHA-256 digest: how long that takes tells nothing of a token.
        """
        if self._file is not None:
            try:
                self._take_up(self._file)
            except (OSError, ValueError) as error:
                logger.warning("tokens of devices stay as they were: %s", error)
        return self._devices.get(digest(given))

    def _take_up(self, file: Path) -> None:
        status = file.stat()
        seen = (status.st_mtime_ns, status.st_size, status.st_ino)
        if seen != self._seen:
            self._seen = seen
            self._devices = {code: name for name, code in DeviceTokens(file).digests.items()}


class DeviceTokens:
    """The file that holds the digests of devices' tokens, by their names; no token is in it.

    Parameters
    ----------
    file : Path
        JSON; need not be there.

    Raises
    ------
    ValueError
        When it holds something else.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            found = json.loads(file.read_text("utf-8")) if file.exists() else {}
        except ValueError:
            found = None
        if not isinstance(found, dict) or not all(
            _DEVICE.fullmatch(name) and isinstance(code, str) and _DIGEST.fullmatch(code)
            for name, code in found.items()
        ):
            raise ValueError(f"{file}: no tokens of devices; `fedhlm keys` writes them")
        self.digests: Mapping[str, str] = found

    def issue(self, name: str) -> str:
        """A token for a device, which is kept nowhere.

        Raises
        ------
        ValueError
            When the name cannot be one, or has a token already.
        """
        if not _DEVICE.fullmatch(name):
            raise ValueError(
                f"device {name!r}: allowed are 1 to 64 letters, digits and ._-, behind as many of "
                "a tenant and a slash if it has one"
            )
        if name in self.digests:
            raise ValueError(f"device {name!r} has a token already; revoke it before another one")
        token = secrets.token_urlsafe(32)
        self._write({**self.digests, name: digest(token)})
        return token

    def revoke(self, name: str) -> None:
        """Let a device's token open nothing any more.

        Raises
        ------
        ValueError
            When it has none.
        """
        if name not in self.digests:
            known = ", ".join(sorted(self.digests)) or "none"
            raise ValueError(f"device {name!r} has no token; devices that have: {known}")
        self._write({other: code for other, code in self.digests.items() if other != name})

    def _write(self, digests: Mapping[str, str]) -> None:
        write_private(self.file, json.dumps(digests, indent=1, sort_keys=True).encode() + b"\n")
        self.digests = digests


class BearerToken:
    """Answers requests that do not bring a token with 401, before their body is read.

    Stands behind `servers.metrics.Watch`, to which it tells the device's name.

    Parameters
    ----------
    app : ASGI application
        What the tokens open.
    tokens : Tokens
        What callers must send in ``Authorization: Bearer``.
    open_paths : collection of str
        Paths that want none.
    refuse : callable
        Called for each request that is refused; the answer to it, which gets its status here.
    """

    def __init__(
        self,
        app: ASGIApp,
        tokens: Tokens,
        open_paths: Collection[str],
        refuse: Callable[[], Response],
    ) -> None:
        self.app = app
        self._tokens = tokens
        self._open_paths = open_paths
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http" or scope["path"] in self._open_paths:
            await self.app(scope, receive, send)
            return
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        device = self._tokens.device(given.strip()) if scheme.lower() == "bearer" else None
        if device is not None:
            scope["about"]["device"] = device
            await self.app(scope, receive, send)
            return
        scope["about"]["refused"] = "token"
        response = self._refuse()
        response.status_code = 401
        response.headers["www-authenticate"] = "Bearer"
        await response(scope, receive, send)


def digest(token: str) -> str:
    """SHA-256 of a token, in hexadecimal digits."""
    return hashlib.sha256(token.encode("utf-8", errors="surrogateescape")).hexdigest()


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read, as a whole or not at all."""
    # mkstemp makes files of mode 0600.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


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
