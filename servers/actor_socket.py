"""A socket of an actor, for callers that ask it often.

A call through Ray costs its two ends 1.2 ms of processor time beside the work (Ray 2.55, AMD EPYC),
one through a socket .05. So a caller asks by Ray where the actor's socket is, and sends its calls
there. The socket is at the node's address in its cluster, as Ray's own are, and reads nothing of
whoever does not send first the key that Ray's callers are told.
"""

from __future__ import annotations

import asyncio
import hmac
import pickle
import secrets
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from typing import Any

from hlm.wire import WireError

_KEY_BYTES = 32
_LENGTH_BYTES = 8
"""Of a message: its length, before itself; `fedhlm_app.transport.actor_connection` knows."""


Place = tuple[str, int, bytes]
"""Address and port of an actor's socket, and what opens it."""


class ActorSocket:
    """The actor's end, in its event loop.

    Parameters
    ----------
    answer : callable
        Of what a caller sends, pickled; an exception is an answer, too.
    """

    def __init__(self, answer: Callable[..., Awaitable[Any]]) -> None:
        self._answer = answer
        self._key = secrets.token_bytes(_KEY_BYTES)
        self._opening: asyncio.Task[asyncio.Server] | None = None

    async def place(self, host: str) -> Place:
        """Listen at this address of the machine, from the first call on."""
        if self._opening is None:
            self._opening = asyncio.create_task(asyncio.start_server(self._serve, host, 0))
        server = await self._opening
        return host, server.sockets[0].getsockname()[1], self._key

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A caller that goes ends its connection.
        with closing(writer), suppress(asyncio.IncompleteReadError, ConnectionError):
            if not hmac.compare_digest(await reader.readexactly(_KEY_BYTES), self._key):
                return
            while True:
                length = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
                asked = pickle.loads(await reader.readexactly(length))
                try:
                    answer = await self._answer(*asked)
                except WireError as error:
                    answer = error
                except Exception as error:  # its caller must hear of it, and nobody else
                    answer = RuntimeError(f"{type(error).__name__}: {error}")
                body = pickle.dumps(answer)
                writer.write(len(body).to_bytes(_LENGTH_BYTES, "big") + body)
                await writer.drain()
