"""Which connections a server takes: as many as files may be open, and not all from one address."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import ssl
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial

from servers.metrics import Page

MOST_CONNECTIONS = 8192
"""Connections at a time, idle ones included."""
EACH_ADDRESS = 256
"""Those of them that one address may have."""
OTHER_FILES = 128
"""Files that are open for something else."""

HANDSHAKE_SECONDS = 30.0
"""Longest wait for the end of a TLS handshake."""

PAUSE_SECONDS = 0.1
"""How long nobody is let in where the system has no more files."""

logger = logging.getLogger(__name__)


class Connections:
    """Takes connections for a server; further ones are closed at once, before anything is read.

    Parameters
    ----------
    each : int
        Most from one address at a time, >= 1; one address never has more than half of all.

    Attributes
    ----------
    most : int
        Most at a time.
    refused : int
        How many were closed at once.
    """

    def __init__(self, each: int = EACH_ADDRESS) -> None:
        wanted = MOST_CONNECTIONS + OTHER_FILES
        files = open_files(wanted)
        self.most = max(2, min(MOST_CONNECTIONS, files - OTHER_FILES))
        self.each = min(each, self.most // 2)
        self.refused = 0
        self._places: dict[int, str] = {}
        self._of: Counter[str] = Counter()
        self._admitting: set[asyncio.Task[None]] = set()
        if files < wanted:
            logger.warning(
                "at most %d connections at a time, since at most %d files may be open; "
                "`ulimit -n %d` before the start allows %d",
                self.most, files, wanted, MOST_CONNECTIONS,
            )  # fmt: skip

    def __len__(self) -> int:
        return len(self._places)

    def add_to(self, page: Page) -> None:
        """Add counters to a page of metrics."""
        page.add("gauge", "connections", "Connections that are open.", len(self))
        page.add("counter", "connections_refused_total", "Those closed at once.", self.refused)

    async def accept(
        self,
        listener: socket.socket,
        protocol: Callable[[Callable[[], None]], asyncio.BaseProtocol],
        tls: ssl.SSLContext | None,
    ) -> None:
        """Take connections until cancelled.

        Parameters
        ----------
        listener : socket.socket
            Bound and listening.
        protocol : callable
            Makes what speaks on a connection, from what it must call when that is lost.
        tls : ssl.SSLContext or None
            None: without TLS.
        """
        loop, number = asyncio.get_running_loop(), 0
        listener.setblocking(False)
        while True:
            try:
                connection, peer = await loop.sock_accept(listener)
            except OSError as error:
                logger.warning("a connection could not be taken: %s", error)
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            place = place_of(str(peer[0]))
            if len(self) >= self.most or self._of[place] >= self.each:
                self.refused += 1
                connection.close()
                continue
            number += 1
            self._places[number] = place
            self._of[place] += 1
            leave = partial(self._leave, number)
            task = asyncio.create_task(_speak(connection, partial(protocol, leave), leave, tls))
            self._admitting.add(task)
            task.add_done_callback(self._admitting.discard)

    def _leave(self, number: int) -> None:
        place = self._places.pop(number, None)
        if place is not None:
            self._of[place] -= 1
            if not self._of[place]:
                del self._of[place]


async def _speak(
    connection: socket.socket,
    protocol: Callable[[], asyncio.BaseProtocol],
    leave: Callable[[], None],
    tls: ssl.SSLContext | None,
) -> None:
    patience = None if tls is None else HANDSHAKE_SECONDS
    try:
        await asyncio.get_running_loop().connect_accepted_socket(
            protocol, connection, ssl=tls, ssl_handshake_timeout=patience
        )
    except OSError as error:
        # Mostly a handshake that failed; nobody is left to tell.
        logger.debug("no connection: %s", error)
        leave()
        connection.close()


def place_of(host: str) -> str:
    """What is counted as one address: of IPv6 the 64 bits that one line has."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def open_files(wanted: int) -> int:
    """Raise the limit of open files of this process as far as it goes; the limit then."""
    if sys.platform == "win32":
        return wanted
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Infinity is a negative number on some systems.
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        return allowed
    return wanted if soft == resource.RLIM_INFINITY else soft
