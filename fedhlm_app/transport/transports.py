"""Ways to reach a service of this run: in this process, or a named Ray actor."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from fedhlm_app.transport.actor_connection import ActorConnection
from fedhlm_app.transport.actor_names import NAMESPACE
from hlm.transport import Frames, LinkDown
from hlm.wire import WireError

START_SECONDS = 600.0
"""Longest that the start of an actor takes, with its model, on a machine that is busy."""


Arrived = tuple[bytes, bool]
"""Frames of a stream, and whether they are its last."""


class Handler(Protocol):
    """The LLM's service."""

    def handle(self, payload: bytes) -> bytes:
        """Answer a message; WireError when it is invalid."""
        ...

    def stream(self, payload: bytes) -> Frames:
        """Frames of a stream; WireError when the opening is invalid."""
        ...


class DirectTransport:
    """A service in this very process.

    Parameters
    ----------
    service : Handler
        Answers.
    """

    def __init__(self, service: Handler) -> None:
        self.service = service

    def exchange(self, payload: bytes) -> bytes:
        """Send a message, return the reply (see `hlm.transport.Transport`)."""
        return self.service.handle(payload)

    def post(self, payload: bytes) -> None:
        """Send a message (see `hlm.transport.Transport`)."""
        with suppress(WireError):
            self.service.handle(payload)

    def stream(self, payload: bytes) -> Frames:
        """Open a stream, which is written as it is read (see `hlm.transport.Transport`)."""
        return self.service.stream(payload)


class RayTransport:
    """A named Ray actor, looked up when it is first needed.

    Parameters
    ----------
    name : str
        Name in the namespace `NAMESPACE`.
    timeout : float
        Seconds to wait for an answer, > 0; those in which the actor's process starts, for a first
        time or again, do not count.
    """

    def __init__(self, name: str, timeout: float) -> None:
        self.name = name
        self.timeout = timeout
        self._actor: Any = None
        self._posted: list[bytes] = []
        # Of open streams: what their readers have not taken yet.
        self._arrived: dict[int, Arrived | BaseException | None] = {}

    def exchange(self, payload: bytes) -> bytes:
        """Send a message, return the reply (see `hlm.transport.Transport`)."""
        answer: bytes = self._ask("exchange", payload)
        return answer

    def post(self, payload: bytes) -> None:
        """Send a message with the next one that has an answer (see `hlm.transport.Transport`)."""
        self._posted.append(payload)

    def stream(self, payload: bytes) -> Frames:
        """Open a stream, which is written as it is read (see `hlm.transport.Transport`)."""
        return self._frames(*self._ask("open", payload))

    def _frames(self, number: int, first: Arrived) -> Frames:
        (frames, over), self._arrived[number] = first, None
        try:
            while frames:
                yield frames
                frames, over = (b"", True) if over else self._next(number)
        finally:
            del self._arrived[number]
            if not over:
                self._drop(number)

    def _next(self, number: int) -> Arrived:
        """The next frames of a stream; with them come those of all whose readers wait as well."""
        if self._arrived[number] is None:
            waiting = [one for one, arrived in self._arrived.items() if arrived is None]
            self._arrived.update(zip(waiting, self._ask("read", waiting), strict=True))
        found, self._arrived[number] = self._arrived[number], None
        if isinstance(found, WireError):
            raise found
        if isinstance(found, BaseException):
            raise LinkDown(f"the actor {self.name!r} failed: {found}") from found
        assert found is not None
        return found

    def _ask(self, method: str, content: bytes | list[int]) -> Any:
        posted, self._posted = self._posted, []
        with self._reached() as actor:
            return self._answer(actor, method, content, *posted)

    def _answer(self, actor: Any, method: str, *content: Any) -> Any:
        import ray

        answer = getattr(actor, method).remote(*content)
        if not ray.wait([answer], timeout=self.timeout)[0]:
            begin = time.monotonic()
            ray.get(actor.__ray_ready__.remote(), timeout=START_SECONDS)
            if time.monotonic() - begin > 1:  # it has only started now
                ray.wait([answer], timeout=self.timeout)
        return ray.get(answer, timeout=0)

    def _drop(self, number: int) -> None:
        if self._actor is not None:
            self._actor.close.remote(number)

    @contextmanager
    def _reached(self) -> Iterator[Any]:
        """The actor; what fails while it is asked is named."""
        import ray
        from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

        try:
            if self._actor is None:
                self._actor = ray.get_actor(self.name, namespace=NAMESPACE)
            yield self._actor
        except (RayActorError, GetTimeoutError, ValueError, OSError) as error:
            if isinstance(error, WireError | LinkDown):
                raise
            # A killed actor comes back under the same name, perhaps with another identity.
            self._actor = None
            raise LinkDown(f"the actor {self.name!r} does not answer: {error}") from error
        except RayTaskError as error:
            if isinstance(error.cause, WireError):
                raise error.cause from error
            raise LinkDown(f"the actor {self.name!r} failed: {error.cause}") from error


class SocketTransport(RayTransport):
    """A named Ray actor that has a socket (`servers.actor_socket`): Ray only says where."""

    def __init__(self, name: str, timeout: float) -> None:
        super().__init__(name, timeout)
        self._connection: ActorConnection | None = None

    def _answer(self, actor: Any, method: str, *content: Any) -> Any:
        while True:
            known = self._connection is not None
            if self._connection is None:
                import ray

                place = ray.get(actor.place.remote(), timeout=START_SECONDS)
                self._connection = ActorConnection(place, self.timeout)
            try:
                answer = self._asked(self._connection, method, *content)
                break
            except ConnectionError:
                # Of one that has died since, Ray says where it is once it is back.
                if not known:
                    raise
        if isinstance(answer, WireError):
            raise answer
        if isinstance(answer, Exception):
            raise LinkDown(f"the actor {self.name!r} failed: {answer}")
        return answer

    def _drop(self, number: int) -> None:
        if self._connection is not None:
            with suppress(OSError):
                self._asked(self._connection, "close", number)

    def _asked(self, connection: ActorConnection, *content: Any) -> Any:
        try:
            return connection.ask(*content)
        except BaseException:  # an answer that comes later is nobody's
            connection.close()
            self._connection = None
            raise
