"""What both servers of `fedhlm serve` do: check who may ask, listen, stop when told."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedhlm_app.cli.run import FAILED
from fedhlm_app.settings import SettingsError

if TYPE_CHECKING:
    from starlette.applications import Starlette


@dataclass(frozen=True)
class Access:
    """Who may ask the server, and over what."""

    certificate: str = ""
    key: str = ""
    token: str = field(default="", repr=False)


OPEN = Access()
"""Unencrypted, for whoever reaches the address."""


def take_port(host: str, port: int) -> socket.socket:
    """A listening socket, before anything is loaded.

    Raises
    ------
    SettingsError
        The port is taken, or the address is not of this machine.
    """
    from servers.http_server import listen

    try:
        return listen(host, port)
    except OSError as error:
        # Python adds the address, which is named here.
        why = (error.strerror or str(error)).partition(" (")[0].lower()
        raise SettingsError(
            f"--host {host} --port {port}: {why}; give another, port 0 takes a free one"
        ) from error


def read_access(certificate: str, key: str, token_file: str) -> Access:
    """Check the files of a server's certificate and token.

    Raises
    ------
    ValueError
        Naming the option and what is allowed.
    """
    from fedhlm_app.transport.llm_access import read_token
    from servers.access import check_certificate

    if key and not certificate:
        raise ValueError(f"--tls-key = {key!r}: needs the certificate too (--tls-cert)")
    if certificate:
        check_certificate(certificate, key)
    return Access(certificate, key, read_token(token_file, "--token-file"))


def run_until_stopped(
    app: Starlette,
    listener: socket.socket,
    on_ready: Callable[[str], None],
    access: Access = OPEN,
) -> None:
    """Serve an application until SIGTERM or SIGINT.

    Parameters
    ----------
    app : Starlette
        What is served.
    listener : socket.socket
        Bound and listening.
    on_ready : callable
        Called with host and port once requests are accepted.
    access : Access
        Its certificate.
    """
    from servers.http_server import make_server

    def ready() -> None:
        name, number = listener.getsockname()[:2]
        on_ready(f"[{name}]:{number}" if ":" in name else f"{name}:{number}")

    # The server raises the signal that stopped it once more: being stopped is no failure.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server = make_server(app, ready, access.certificate, access.key)
    server.run(sockets=[listener])
    if not server.started:
        sys.exit(FAILED)
