"""How fast refusals are heard: who is refused without end waits for it, and others do not.

A request that is refused costs the server little and its sender less, so a device with many
connections could have a whole core refuse, which others would wait for. Each origin
(`servers.origin`), or all of a tenant together, therefore hears `EACH_SECOND` refusals a second,
over all connections; what is not refused never waits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

from servers.bodies import origin_of
from servers.http_server import CALLER_GONE
from servers.origin import Origin

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

EACH_SECOND = 500
"""Refusals that an origin hears in a second, once it has used up those of a second at once."""
AT_ONCE_SECONDS, LONGEST_SECONDS = 1.0, 1.0
"""Refusals of so many seconds are heard at once; no refusal waits for longer."""


class Refusals:
    """When refusals may be heard: a generic cell rate algorithm (ITU-T I.371) for each origin.

    Parameters
    ----------
    clock : callable
        Seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._used: dict[Hashable, float] = {}  # until when; who was refused last stands last

    def __len__(self) -> int:
        return len(self._used)

    def wait(self, origin: Origin) -> float:
        """Count a refusal; how many seconds it waits, at most `LONGEST_SECONDS`."""
        now, who = self._clock(), origin.shares[0]
        used = max(self._used.pop(who, now), now) + 1 / EACH_SECOND
        self._used[who] = used = min(used, now + AT_ONCE_SECONDS + LONGEST_SECONDS)
        while self._used[first := next(iter(self._used))] <= now:
            del self._used[first]
        return max(0.0, used - now - AT_ONCE_SECONDS)


class Slowed:
    """Lets refusals wait as `Refusals` says: answers with a status from 400 to 498.

    Stands between `servers.metrics.Watch` and `servers.access.BearerToken`, which tells whose they
    are.

    Parameters
    ----------
    app : ASGI application
        What refuses.
    refusals : Refusals
        Counts them.
    """

    def __init__(self, app: ASGIApp, refusals: Refusals) -> None:
        self.app = app
        self._refusals = refusals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start" and 400 <= message["status"] < CALLER_GONE:
                seconds = self._refusals.wait(origin_of(scope))
                if seconds:
                    await asyncio.sleep(seconds)
            await send(message)

        await self.app(scope, receive, sending)
