"""Bodies of requests: how much of them is held while they arrive and are answered, and whose."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Scope

from servers.connections import place_of
from servers.http_server import BodyTooLarge, bounded
from servers.origin import Full, Origin, Shared

BODY_SECONDS = 30.0
"""Longest wait for a body."""
MEMORY_BYTES = 1 << 26
"""Most bytes of bodies held at a time."""

SHARE_SECONDS = 1.0
"""How long an origin that has its share waits to hear so: who floods shall not be the faster."""


class Bodies:
    """Reads bodies of requests into one memory, of which no origin has more than half.

    Parameters
    ----------
    most : int
        Largest body, bytes.
    memory : int
        Most bytes held at a time, over all requests.
    seconds : float
        Longest wait for a body.

    Attributes
    ----------
    held : Shared
        Bytes that are held.
    """

    def __init__(
        self, most: int, memory: int = MEMORY_BYTES, seconds: float = BODY_SECONDS
    ) -> None:
        self.most, self.seconds = most, seconds
        self.held = Shared(memory)

    async def answer(
        self, request: Request, answered: Callable[[bytes, Origin], Awaitable[Response]]
    ) -> Response:
        """Read a request's body and let it be answered; say why where it cannot be had.

        The reason is also in ``about`` of the request's scope (`servers.metrics.Watch`).
        """
        about, body, origin = request.scope["about"], bytearray(), origin_of(request.scope)
        try:
            async with asyncio.timeout(self.seconds):
                async for chunk in bounded(request, self.most):
                    self.held.take(origin, len(chunk))
                    body += chunk
            return await answered(bytes(body), origin)
        except BodyTooLarge:
            about["refused"] = "body-size"
            return PlainTextResponse(f"body: at most {self.most} bytes are read", 413)
        except TimeoutError:
            about["refused"] = "body-time"
            # What is still to come of the body must not be taken for a request.
            headers = {"connection": "close"}
            return PlainTextResponse(f"body: not here within {self.seconds:g} s", 408, headers)
        except ClientDisconnect:
            about["refused"] = "body-cut"
            return PlainTextResponse("body: the connection was cut", 400)
        except Full as full:
            about["refused"] = "memory-share" if full.share else "memory"
            return await full_up(full, "the bodies of other requests fill the memory for them")
        finally:
            self.held.take(origin, -len(body))


def origin_of(scope: Scope) -> Origin:
    """Who asks: a device by its token's name, or else an address."""
    if device := scope["about"].get("device"):
        return Origin(device)
    client = scope.get("client")
    return Origin(address=place_of(client[0]) if client else "")


async def full_up(full: Full, why: str) -> Response:
    """The answer to a request for which there is no more of something."""
    if not full.share:
        return busy(why)
    await asyncio.sleep(SHARE_SECONDS)
    return busy("half of what there is for requests is taken by yours")


def busy(why: str) -> Response:
    """The answer to a request that may come again."""
    return PlainTextResponse(f"busy: {why}", 503, headers={"retry-after": "1"})
