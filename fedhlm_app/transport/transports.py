"""Ways to reach a service of this run: in this process, or a named Ray actor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from fedhlm_app.transport.actor_names import NAMESPACE
from hlm.transport import Frames, LinkDown
from hlm.wire import WireError


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
        Seconds to wait for an answer, > 0.
    """

    def __init__(self, name: str, timeout: float) -> None:
        self.name = name
        self.timeout = timeout
        self._actor: Any = None

    def exchange(self, payload: bytes) -> bytes:
        """Send a message, return the reply (see `hlm.transport.Transport`)."""
        import ray

        with self._reached() as actor:
            answer: bytes = ray.get(actor.exchange.remote(payload), timeout=self.timeout)
        return answer

    def post(self, payload: bytes) -> None:
        """Send a message (see `hlm.transport.Transport`)."""
        with suppress(LinkDown), self._reached() as actor:
            actor.exchange.remote(payload)

    def stream(self, payload: bytes) -> Frames:
        """Open a stream, return its frames (see `hlm.transport.Transport`)."""
        with self._reached() as actor:
            arriving = actor.stream.options(num_returns="streaming").remote(payload)
        return self._frames(arriving)

    def _frames(self, arriving: Any) -> Frames:
        import ray
        from ray.exceptions import GetTimeoutError

        try:
            while True:
                with self._reached():
                    ready, _ = ray.wait([arriving], timeout=self.timeout)
                    if not ready:
                        raise GetTimeoutError(f"no frame within {self.timeout:g} s")
                    try:
                        frames: bytes = ray.get(next(arriving), timeout=self.timeout)
                    except StopIteration:
                        return
                yield frames
        finally:
            if not arriving.is_finished():
                ray.cancel(arriving)

    @contextmanager
    def _reached(self) -> Iterator[Any]:
        """The actor; what fails while it is asked is named."""
        import ray
        from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

        try:
            if self._actor is None:
                self._actor = ray.get_actor(self.name, namespace=NAMESPACE)
            yield self._actor
        except (RayActorError, GetTimeoutError, ValueError) as error:
            if isinstance(error, WireError):
                raise
            # A killed actor comes back under the same name, perhaps with another identity.
            self._actor = None
            raise LinkDown(f"the actor {self.name!r} does not answer: {error}") from error
        except RayTaskError as error:
            if isinstance(error.cause, WireError):
                raise error.cause from error
            raise LinkDown(f"the actor {self.name!r} failed: {error.cause}") from error
