"""What both servers of `fedhlm serve` do: check who may ask, listen, stop when told."""

from __future__ import annotations

import errno
import logging
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedhlm_app.cli.run import FAILED
from fedhlm_app.settings import SettingsError

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from servers.access import Tokens


@dataclass(frozen=True)
class Access:
    """Who may ask the server, and over what."""

    certificate: str = ""
    key: str = ""
    tokens: Tokens | None = None


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
        taken = error.errno in (errno.EADDRINUSE, errno.EACCES)
        allowed = (
            "another port, 0 takes a free one"
            if taken
            else "an address of this machine, as 127.0.0.1, or 0.0.0.0 for every one"
        )
        raise SettingsError(f"--host {host} --port {port}: {why}; give {allowed}") from error


def read_access(
    host: str,
    certificate: str,
    key: str,
    token_file: str,
    *,
    insecure: bool = False,
    environ: Mapping[str, str] | None = None,
) -> Access:
    """Check who may ask a server: the files of its certificate and tokens, and where it listens.

    Parameters
    ----------
    host : str
        Address to listen on.
    certificate, key, token_file : str
        PEM files, and one that holds a token, or JSON with those of devices; empty: none.
    insecure : bool
        Others may reach it without.
    environ : mapping
        Where a token may be that is in no file; `os.environ` when None.

    Raises
    ------
    ValueError
        Naming the option and what is allowed.
    """
    from fedhlm_app.hosting.served import read_tokens
    from fedhlm_app.settings.address import is_loopback
    from servers.access import check_certificate

    if key and not certificate:
        raise ValueError(f"--tls-key = {key!r}: needs the certificate too (--tls-cert)")
    if certificate:
        check_certificate(certificate, key)
    tokens = read_tokens(token_file, "--token-file", environ)
    wanted = {"--tls-cert": certificate, "--token-file": tokens}
    lacking = [name for name, given in wanted.items() if not given]
    if lacking and not insecure and not is_loopback(host):
        raise SettingsError(
            f"--host {host}: whoever reaches it would be "
            f"{'answered' if '--token-file' in lacking else 'able to listen in'}; give "
            f"{' and '.join(lacking)} (`fedhlm keys` makes both), or say --insecure where the "
            "network is trusted"
        )
    return Access(certificate, key, tokens)


def log_as_json() -> None:
    """Log a line of JSON for every event, requests included, on standard error."""
    from servers import metrics

    handler = logging.StreamHandler()
    handler.setFormatter(metrics.JsonLines())
    logging.basicConfig(handlers=[handler], force=True)
    metrics.logger.setLevel(logging.INFO)


def run_until_stopped(
    app: Starlette,
    listener: socket.socket,
    on_ready: Callable[[str], None],
    access: Access,
    per_address: int = 256,
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
    per_address : int
        Most connections from one address at a time, >= 1.
    """
    from servers.http_server import make_server

    def ready() -> None:
        name, number = listener.getsockname()[:2]
        on_ready(f"[{name}]:{number}" if ":" in name else f"{name}:{number}")

    # The server raises the signal that stopped it once more: being stopped is no failure.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server = make_server(app, ready, access.certificate, access.key, per_address)
    server.run(sockets=[listener])
    if not server.started:
        sys.exit(FAILED)
