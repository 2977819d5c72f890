"""The server behind `fedhlm serve edge`."""

from __future__ import annotations

import socket
import ssl
from functools import partial
from typing import TYPE_CHECKING

from fedhlm_app.cli.listening import Access, run_until_stopped
from fedhlm_app.settings.address import parse_address

if TYPE_CHECKING:
    import httpx

CONNECT_SECONDS = 10.0


def open_upstream(address: str, ca_file: str) -> httpx.AsyncClient:
    """The link of an edge server to the LLM's server.

    Parameters
    ----------
    address : str
        ``host:port`` or a URL with scheme http or https.
    ca_file : str
        PEM file of the authorities that are trusted; empty: the system's.

    Raises
    ------
    ValueError
        When the address is none, or there are no certificates in the file.
    """
    import httpx

    try:
        parsed = parse_address(address)
    except ValueError as error:
        raise ValueError(str(error).replace("setting 'llm-address'", "--upstream")) from None
    scheme = "https" if parsed.secure else "http"
    host = f"[{parsed.host}]" if ":" in parsed.host else parsed.host
    try:
        trusted = ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:
        raise ValueError(
            f"--upstream-ca {ca_file!r}: no file of certificates in PEM ({error.strerror or error})"
        ) from None
    return httpx.AsyncClient(
        base_url=f"{scheme}://{host}:{parsed.port}{parsed.path}/",
        verify=trusted,
        # How long an answer may take is for its device to say, which hangs up.
        timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
        limits=httpx.Limits(max_connections=None),
    )


def serve_edge(
    slm: str, upstream: httpx.AsyncClient | None, listener: socket.socket, access: Access
) -> None:
    """Serve edge servers of runs until the process is asked to stop.

    Parameters
    ----------
    slm : str
        The devices' small model; empty: as the runs name it.
    upstream : httpx.AsyncClient or None
        Reaches the LLM's server.
    listener : socket.socket
        Bound and listening.
    access : Access
        Who may ask.
    """
    import torch

    from fedhlm_app.hosting.edge import edge_of_order
    from servers.edge.service import ServedEdge

    torch.set_num_threads(1)
    served = ServedEdge(partial(edge_of_order, slm=slm), access.tokens, upstream)

    def ready(at: str) -> None:
        where = f"https://{at}" if access.certificate else at
        onward = "" if upstream is None else f", the LLM is asked at {upstream.base_url}"
        print(f"serving an edge at {where}{onward}", flush=True)

    run_until_stopped(served.app, listener, ready, access)
