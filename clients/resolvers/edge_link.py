"""A device's connection to its edge server: sends bytes, and keeps away from one that is down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from clients.records import Traffic
from clients.resolvers.back_off import BackOff
from hlm.wire import WireError

Answer = TypeVar("Answer")


class EdgeTransport(Protocol):
    """One way of reaching the edge server: in-process, Ray actor or network."""

    def exchange(self, payload: bytes) -> bytes:
        """Send a message, return the reply; ConnectionError or TimeoutError when none comes."""
        ...


@dataclass(frozen=True)
class EdgeLinkConfig:
    """What the messages of a device have in common.

    Attributes
    ----------
    client : int
        Number of the device.
    vocab : int
        Size of the shared vocabulary.
    cluster_size : int
        Clients of the cluster; alone, a device never asks.
    mode : {"context", "paper"}
        `peer-mode`.
    most_rows : int
        Most rows in one question.
    flush_rows : int
        Shared tokens that wait for a question before they travel on their own.
    first_pause, longest_pause : float
        Seconds for which the edge server is left alone after a failure; doubles with each further
        one, and starts again after an answer.
    """

    client: int
    vocab: int
    cluster_size: int
    mode: Literal["context", "paper"] = "context"
    most_rows: int = 512
    flush_rows: int = 64
    first_pause: float = 0.5
    longest_pause: float = 30.0


class EdgeLink:
    """Sends messages and counts their bytes; after a failure it pauses.

    Parameters
    ----------
    transport : EdgeTransport
        Carries bytes.
    config : EdgeLinkConfig
        For its pauses.
    """

    def __init__(self, transport: EdgeTransport, config: EdgeLinkConfig) -> None:
        self.transport = transport
        self.back_off = BackOff(config.first_pause, config.longest_pause)

    @property
    def asleep(self) -> bool:
        """Whether the edge server is left alone after a failure."""
        return self.back_off.asleep

    def send(
        self, payload: bytes, decode: Callable[[bytes], Answer], traffic: Traffic
    ) -> Answer | None:
        """The decoded answer; None, and a pause, if there is none that can be read."""
        try:
            answer = self.transport.exchange(payload)
            reply = decode(answer)
        except (ConnectionError, TimeoutError, WireError):
            traffic.failures += 1
            self.back_off.failed()
            return None
        self.back_off.answered()
        traffic.edge += len(payload) + len(answer)
        return reply
