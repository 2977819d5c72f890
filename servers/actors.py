"""The LLM service as a Ray actor: one process that all simulated devices talk to.

Ray restarts the actor when it dies; its sessions are gone then, and devices send their prefixes
again.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from servers.actor_socket import ActorSocket, Place
from servers.batcher import RequestBatcher, StreamFrames

if TYPE_CHECKING:
    # The process that starts actors runs no model, and need not import what runs one.
    from servers.edge.actor import EdgeActor
    from servers.llm import LanguageModelService


class LanguageModelActor:
    """What runs inside the Ray actor.

    Parameters
    ----------
    build : callable
        Makes the service, in the actor's own process.
    wait : float
        Seconds a request waits for company.
    most : int
        Most requests answered at once.
    """

    concurrency = 1000
    # Asked again once it is back, it misses the text and says so.
    retries = -1

    def __init__(
        self, build: Callable[[], LanguageModelService], wait: float = 0.0, most: int = 64
    ) -> None:
        import torch

        torch.set_num_threads(1)
        self._batcher = RequestBatcher(build(), wait, most)
        self._streams: dict[int, tuple[AsyncGenerator[bytes, None], StreamFrames]] = {}
        self._socket = ActorSocket(self._asked)

    async def place(self) -> Place:
        """Where `exchange`, `open`, `read` and `close` are asked without Ray."""
        import ray

        host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        return await self._socket.place(host)

    async def _asked(self, method: str, *content: Any) -> Any:
        own: dict[str, Callable[..., Awaitable[Any]]] = {
            "exchange": self.exchange,
            "open": self.open,
            "read": self.read,
            "close": self.close,
        }
        return await own[method](*content)

    async def exchange(self, payload: bytes, *posted: bytes) -> bytes:
        """Answer one request (see `RequestBatcher.exchange`), after posted ones."""
        self._take(posted)
        return await self._batcher.exchange(payload)

    async def open(self, payload: bytes, *posted: bytes) -> tuple[int, tuple[bytes, bool]]:
        """Open a stream (see `RequestBatcher.stream`); its number, and the first frames.

        Nothing is written before it is asked for, so a run repeats to the last byte, and what is
        taken back was never written.
        """
        self._take(posted)
        frames = StreamFrames(ahead=False)
        # An actor that was started again has none of the numbers of the one before.
        number = secrets.randbits(63)
        self._streams[number] = self._batcher.stream(payload, frames), frames
        return number, await self._next(number)

    async def read(self, numbers: Sequence[int], *posted: bytes) -> list[Any]:
        """The next frames of each of some streams (see `_next`), or why there are none."""
        self._take(posted)
        return await asyncio.gather(*map(self._next, numbers), return_exceptions=True)

    async def close(self, number: int) -> None:
        """Drop what is left to do for a stream."""
        if number in self._streams:
            await self._streams.pop(number)[0].aclose()

    async def _next(self, number: int) -> tuple[bytes, bool]:
        """Frames, and whether they are the last; none of a stream that is not known."""
        if number not in self._streams:
            return b"", True
        arriving, frames = self._streams[number]
        try:
            return await anext(arriving, b""), frames.over
        finally:
            if frames.over:
                await self.close(number)

    def _take(self, posted: Collection[bytes]) -> None:
        for payload in posted:
            # It is done all the same, and nobody waits for its answer.
            self._batcher.submit(payload).cancel()

    async def describe(self) -> dict[str, Any]:
        """What the model is, once it is loaded (see `LanguageModelService.describe`)."""
        return self._batcher.service.describe()

    async def stats(self) -> dict[str, float]:
        """Counters of the engine since this process started."""
        return dict(vars(self._batcher.service.engine.stats))


def start_actor(
    kind: type[LanguageModelActor] | type[EdgeActor],
    name: str,
    namespace: str,
    *arguments: Any,
    gpus: float = 0.0,
) -> Any:
    """Start the named actor, or find it if it is there; returns its Ray handle.

    It claims no CPU, since Flower's client pool claims all of them, and is restarted for ever;
    what it was asked meanwhile waits for it, if its kind says so. It ends with the first handle,
    and with the process that has it, however that ends: a cluster may outlive a run.
    """
    import ray

    # Ray has no types that mypy follows here.
    actor: Any = ray.remote(num_cpus=0, num_gpus=gpus, max_restarts=-1)(kind)
    return actor.options(
        name=name,
        namespace=namespace,
        get_if_exists=True,
        max_concurrency=kind.concurrency,
        max_task_retries=kind.retries,
    ).remote(*arguments)
