"""A device's connection to a server: counts what crosses it, and keeps away while it is down.

Sending again would not help a server that is not there: after a failure it is left alone for a
while, and whoever wanted to ask goes on without it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from logging import getLogger
from typing import Literal, TypeVar

from clients.records import Traffic
from hlm.transport import Frames, LinkDown, LinkRefused, Transport
from hlm.wire import WireError

logger = getLogger(__name__)

Answer = TypeVar("Answer")

_NAMES = {"llm": "LLM", "edge": "edge"}
_MEANWHILE = {"llm": "tokens stay with the small model", "edge": "tokens go on to the LLM"}


class BackOff:
    """A pause after each failure, twice as long after each further one, until an answer comes.

    Parameters
    ----------
    first, longest : float
        Pause after a first failure, and the longest one, in s; both >= 0.
    clock : callable
        Seconds on a clock that never goes back.
    """

    def __init__(
        self,
        first: float = 0.5,
        longest: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.first = first
        self.longest = longest
        self.clock = clock
        self._next = first
        self._until = float("-inf")

    @property
    def asleep(self) -> bool:
        """Whether the server is to be left alone now."""
        return self.clock() < self._until

    def failed(self) -> None:
        """No answer came: begin a pause."""
        self._until = self.clock() + self._next
        self._next = min(2 * self._next, self.longest)

    def answered(self) -> None:
        """An answer came, whatever it says: the next failure is a first one again."""
        self.wake()
        self._next = self.first

    def wake(self) -> None:
        """End the pause, so that the server may be tried at once."""
        self._until = float("-inf")


class Link:
    """Sends messages and counts their bytes; after a failure it pauses.

    Parameters
    ----------
    transport : Transport
        Carries bytes.
    server : {"llm", "edge"}
        Which server it reaches, and so where its bytes are counted.

    Attributes
    ----------
    back_off : BackOff
        How long the server is left alone after a failure.
    problem : str
        Why the last message brought no answer; empty after an answer.
    """

    def __init__(self, transport: Transport, server: Literal["llm", "edge"]) -> None:
        self.transport = transport
        self.server = server
        self.back_off = BackOff()
        self.problem = ""

    @property
    def asleep(self) -> bool:
        """Whether the server is left alone after a failure."""
        return self.back_off.asleep

    def exchange(
        self, payload: bytes, decode: Callable[[bytes], Answer], traffic: Traffic
    ) -> Answer:
        """Send a message, return the decoded reply.

        Raises
        ------
        LinkDown
            When no answer comes, or none that can be read; counted, logged and followed by a pause.
        WireError
            When the server finds the message invalid.
        """
        with self._asked(traffic):
            answer = self.transport.exchange(payload)
        try:
            found = decode(answer)
        except WireError as error:
            unread = LinkDown(f"the {_NAMES[self.server]} server's answer cannot be read: {error}")
            self.failed(unread, traffic)
            raise unread from error
        self._answered()
        self._count(len(payload), len(answer), traffic)
        return found

    def post(self, payload: bytes, answer_bytes: int, traffic: Traffic) -> None:
        """Send a message whose answer, of known length, nobody waits for."""
        self.transport.post(payload)
        self._count(len(payload), answer_bytes, traffic)

    def stream(self, payload: bytes, traffic: Traffic) -> Frames:
        """Open a stream, return its frames in whatever pieces they arrive.

        Raises
        ------
        LinkDown
            When no answer comes, or for too long no further frame; counted like that of
            `exchange`.
        WireError
            When the server finds the opening invalid.
        """
        with self._asked(traffic):
            arriving = self.transport.stream(payload)
            frames = next(arriving, b"")
        self._answered()
        self._count(len(payload), 0, traffic)
        with closing(arriving):
            while frames:
                traffic.downlink += len(frames)
                yield frames
                with self._asked(traffic):
                    frames = next(arriving, b"")

    @contextmanager
    def _asked(self, traffic: Traffic) -> Iterator[None]:
        """While the server is waited for."""
        begin = time.perf_counter()
        try:
            yield
        except LinkDown as error:
            self.failed(error, traffic)
            raise
        except WireError:
            self._answered()  # a refusal is an answer too
            raise
        finally:
            traffic.waited += time.perf_counter() - begin

    def failed(self, error: Exception, traffic: Traffic) -> None:
        """Count a failure and begin a pause."""
        self.back_off.failed()
        traffic.failures += 1
        if isinstance(error, LinkRefused):
            traffic.refused += error.cause == "token"
            traffic.untrusted += error.cause == "certificate"
        # Once in a row: a server that is down would fill the log.
        if str(error) != self.problem:
            self.problem = str(error)
            logger.warning("%s; %s", self.problem, _MEANWHILE[self.server])

    def _answered(self) -> None:
        self.back_off.answered()
        if self.problem:
            logger.warning("the %s server answers again", _NAMES[self.server])
        self.problem = ""

    def _count(self, up: int, down: int, traffic: Traffic) -> None:
        if self.server == "edge":
            traffic.edge += up + down
            return
        traffic.uplink += up
        traffic.downlink += down
        traffic.messages += 1
