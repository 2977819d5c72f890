"""What both ends of a link agree on beside the bytes: how they are carried, and how that fails."""

from __future__ import annotations

from collections.abc import Generator
from typing import Literal, Protocol

Frames = Generator[bytes, None, None]
"""A stream on its way, in whatever pieces it arrives; closed, nobody reads it any more."""


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

    def post(self, payload: bytes) -> None:
        """Send a message whose answer nobody waits for, after those posted before it.

        What fails is not heard of.
        """
        ...

    def stream(self, payload: bytes) -> Frames:
        """Open a stream (`hlm.wire.stream`); its frames.

        One that breaks may also just end: frames say themselves where they are complete.

        Raises
        ------
        LinkDown
            When no answer comes, or for too long no further frame.
        WireError
            When the server finds the opening invalid.
        """
        ...
