"""What both ends of a link agree on beside the bytes: how they are carried, and how that fails."""

from __future__ import annotations

from typing import Literal, Protocol


class LinkDown(ConnectionError):
    """No answer from a server: not reachable, too late, or it failed."""


class LinkRefused(LinkDown):
    """The server is there, and a setting keeps the device from it: waiting mends nothing.

    Parameters
    ----------
    message : str
        What is wrong, and which setting mends it.
    cause : {"token", "certificate"}
        The server refuses the device's token; or it is not, or not surely, the server it should be.
    """

    def __init__(self, message: str, cause: Literal["token", "certificate"]) -> None:
        super().__init__(message)
        self.cause = cause


class Transport(Protocol):
    """One way of reaching a server: within the process, a Ray actor, or the network."""

    def exchange(self, payload: bytes) -> bytes:
        """Send a message, return the reply.

        Raises
        ------
        LinkDown
            When no answer comes.
        WireError
            When the server finds the message invalid.
        """
        ...
