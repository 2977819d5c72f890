"""A device's connection to the LLM server: counts what crosses it, and keeps away while it is down.

Sending again would not help a server that is not there: after a failure it is left alone for a
while, and whoever wanted to ask goes on without it.
"""

from __future__ import annotations

import time
from logging import getLogger
from typing import Literal, Protocol

from clients.records import Traffic
from clients.resolvers.back_off import BackOff
from hlm.wire import WireError

logger = getLogger(__name__)


class LinkDown(ConnectionError):
    """No answer from the LLM server: not reachable, too late, or it failed."""


class LinkRefused(LinkDown):
    """The LLM server is there, and a setting keeps the device from it: waiting mends nothing.

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
    """One way of reaching the LLM server: in-process, Ray actor or network."""

    def exchange(self, payload: bytes) -> bytes:
        """Send a request, return the reply.

        Raises
        ------
        LinkDown
            When no answer comes.
        """
        ...


class LlmLink:
    """Sends requests and counts their bytes; after a failure it pauses.

    Parameters
    ----------
    transport : Transport
        Carries bytes.
    back_off : BackOff
        How long the server is left alone after a failure.

    Attributes
    ----------
    problem : str
        Why the last request brought no answer; empty after an answer.
    """

    def __init__(self, transport: Transport, back_off: BackOff) -> None:
        self.transport = transport
        self.back_off = back_off
        self.problem = ""

    @property
    def asleep(self) -> bool:
        """Whether the server is left alone after a failure."""
        return self.back_off.asleep

    def exchange(self, payload: bytes, traffic: Traffic) -> bytes:
        """Send a request, return the reply.

        Raises
        ------
        LinkDown
            When no answer comes; counted, logged and followed by a pause.
        WireError
            When the server finds the request invalid.
        """
        begin = time.perf_counter()
        try:
            answer = self.transport.exchange(payload)
        except LinkDown as error:
            self._failed(error, traffic)
            raise
        except WireError:
            self._answered()  # a refusal is an answer too
            raise
        finally:
            traffic.waited += time.perf_counter() - begin
        self._answered()
        traffic.uplink += len(payload)
        traffic.downlink += len(answer)
        traffic.messages += 1
        return answer

    def _answered(self) -> None:
        self.back_off.answered()
        self.problem = ""

    def _failed(self, error: LinkDown, traffic: Traffic) -> None:
        self.back_off.failed()
        traffic.failures += 1
        if isinstance(error, LinkRefused):
            traffic.refused += error.cause == "token"
            traffic.untrusted += error.cause == "certificate"
        # Once in a row: a server that is down would fill the log.
        if str(error) != self.problem:
            self.problem = str(error)
            logger.warning("%s; tokens stay with the small model", self.problem)
