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

    Where all places are taken, the connection that has been silent for longest makes room.

    Parameters
    ----------
    each : int
        Most from one address at a time, >= 1; one address never has more than half of all.

    Attributes
    ----------
    most : int
        Most at a time.
    refused : int
        How many were closed at once, or made room.
    """

    def __init__(self, each: int = EACH_ADDRESS) -> None:
        wanted = MOST_CONNECTIONS + OTHER_FILES
        files = open_files(wanted)
        self.most = max(2, min(MOST_CONNECTIONS, files - OTHER_FILES))
        self.each = min(each, self.most // 2)
        self.refused = 0
        self._places: set[Place] = set()
        self._silent: dict[Place, Callable[[], object]] = {}  # and how each is closed
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
        closed = self.refused
        page.add("counter", "connections_refused_total", "Closed at once or to make room.", closed)

    async def accept(
        self,
        listener: socket.socket,
        protocol: Callable[[Place], asyncio.BaseProtocol],
        tls: ssl.SSLContext | None,
    ) -> None:
        """Take connections until cancelled.

        Parameters
        ----------
        listener : socket.socket
            Bound and listening.
        protocol : callable
            Makes what speaks on a connection, and tells its place of that.
        tls : ssl.SSLContext or None
            None: without TLS.
        """
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        while True:
            try:
                connection, peer = await loop.sock_accept(listener)
            except OSError as error:
                logger.warning("a connection could not be taken: %s", error)
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            address = place_of(str(peer[0]))
            full = len(self) >= self.most
            if self._of[address] >= self.each or (full and not self._silent):
                self.refused += 1
                connection.close()
                continue
            if full:
                self.refused += 1
                longest = next(iter(self._silent))
                self._silent[longest]()
                longest.leave()
                # A flood must not be taken in faster than others are closed.
                await asyncio.sleep(0)
            self._take(connection, Place(self, address), protocol, tls)

    def _take(
        self,
        connection: socket.socket,
        place: Place,
        protocol: Callable[[Place], asyncio.BaseProtocol],
        tls: ssl.SSLContext | None,
    ) -> None:
        self._places.add(place)
        self._of[place.address] += 1
        task = asyncio.create_task(_speak(connection, place, partial(protocol, place), tls))
        place.silent(task.cancel)
        self._admitting.add(task)
        task.add_done_callback(self._admitting.discard)

    def leave(self, place: Place) -> None:
        """Give a place back, if it is not yet."""
        self._silent.pop(place, None)
        if place in self._places:
            self._places.remove(place)
            self._of[place.address] -= 1
            if not self._of[place.address]:
                del self._of[place.address]


class Place:
    """That of one connection.

    Attributes
    ----------
    address : str
        What it counts for (`place_of`).
    """

    def __init__(self, among: Connections, address: str) -> None:
        self._among, self.address = among, address

    def silent(self, close: Callable[[], object]) -> None:
        """Nothing is in work from now on: it may be closed."""
        if self in self._among._places:
            self._among._silent[self] = close

    def speaks(self) -> None:
        """A request is in work."""
        self._among._silent.pop(self, None)

    def leave(self) -> None:
        """The connection is lost."""
        self._among.leave(self)


async def _speak(
    connection: socket.socket,
    place: Place,
    protocol: Callable[[], asyncio.BaseProtocol],
    tls: ssl.SSLContext | None,
) -> None:
    patience = None if tls is None else HANDSHAKE_SECONDS
    try:
        await asyncio.get_running_loop().connect_accepted_socket(
            protocol, connection, ssl=tls, ssl_handshake_timeout=patience
        )
    except (OSError, asyncio.CancelledError) as error:
        # Mostly a handshake that failed; nobody is left to tell.
        logger.debug("no connection: %s", error)
        place.leave()
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
