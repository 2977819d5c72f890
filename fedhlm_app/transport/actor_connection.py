"""A caller's end of the socket of an actor (`servers.actor_socket`)."""

from __future__ import annotations

import pickle
import socket
from typing import Any

_LENGTH_BYTES = 8


class ActorConnection:
    """A caller's end.

    Parameters
    ----------
    place : tuple of str, int, bytes
        Address and port of the actor's socket, and what opens it.
    timeout : float
        Seconds to wait for an answer, > 0.

    Raises
    ------
    OSError
        When nobody listens there.
    """

    def __init__(self, place: tuple[str, int, bytes], timeout: float) -> None:
        host, port, key = place
        self._socket = socket.create_connection((host, port), timeout)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")
        self._socket.sendall(key)

    def ask(self, *content: Any) -> Any:
        """Have something answered; an exception is an answer.

        Raises
        ------
        OSError
            When the actor has died (ConnectionError), or does not answer in time (TimeoutError);
            the connection is of no use then.
        """
        body = pickle.dumps(content)
        self._socket.sendall(len(body).to_bytes(_LENGTH_BYTES, "big") + body)
        return pickle.loads(self._read(int.from_bytes(self._read(_LENGTH_BYTES), "big")))

    def close(self) -> None:
        """End the connection."""
        self._file.close()
        self._socket.close()

    def _read(self, count: int) -> bytes:
        if len(found := self._file.read(count)) < count:
            raise ConnectionResetError("the actor has closed the connection")
        return found
