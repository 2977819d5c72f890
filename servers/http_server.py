"""The HTTP server under the LLM service and a serving device: patience, bodies, connections."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from servers.connections import EACH_ADDRESS, Connections, Place

OPEN_PATHS = ("/health", "/healthz", "/readyz")
"""What load balancers ask without a token."""

CALLER_GONE = 499
"""Counted as the status of a request whose caller hung up; nobody reads it."""

HEADER_SECONDS = 30.0
"""Longest wait for a request's headers, from the connection or from their first byte on."""


class BodyTooLarge(Exception):
    """The body is longer than allowed."""


async def bounded(request: Request, most: int) -> AsyncIterator[bytes]:
    """The body of a request in pieces, refused once it is known to be longer than `most` bytes."""
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > most:
        raise BodyTooLarge
    length = 0
    async for chunk in request.stream():
        length += len(chunk)
        if length > most:
            raise BodyTooLarge
        yield chunk


class _CutOff:
    """Answers 503 where the server's end cuts a request off, as uvicorn does by cancelling it.

    Left to uvicorn it is a failure of the application: status 500, and its whole stack in the log.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, sending)
        except asyncio.CancelledError:
            # An answer that has begun is cut, so that nobody takes it for whole.
            if not begun:
                ended = PlainTextResponse("the server is being stopped", 503)
                await ended(scope, receive, send)


class _ImpatientProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """Closes connections on which a request's headers are late, the first one's included.

    uvicorn itself only closes those that are silent after an answer.
    """

    _late: asyncio.TimerHandle | None = None
    place: Place

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_waiting()
        self.place.leave()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._in_work:
            self.place.silent(self.transport.abort)

    @property
    def _in_work(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_headers(self) -> None:
        """Wait for headers, but for as long as a request is in work."""
        if self._in_work:
            self._stop_waiting()
            self.place.speaks()
        elif self._late is None:
            self._late = self.loop.call_later(HEADER_SECONDS, self.transport.close)
            self.place.silent(self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


class _Server(uvicorn.Server):
    """Takes connections itself, some from each address, and says when it has begun to."""

    def __init__(
        self, config: uvicorn.Config, connections: Connections, on_ready: Callable[[], None] | None
    ) -> None:
        super().__init__(config)
        self._connections, self._on_ready = connections, on_ready
        self._accepting: list[asyncio.Task[None]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        self.servers = []
        self._accepting = [
            asyncio.create_task(self._connections.accept(one, self._protocol, self.config.ssl))
            for one in sockets or ()
        ]
        self.started = True
        if self._on_ready is not None:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        await super().shutdown(sockets)

    def _protocol(self, place: Place) -> _ImpatientProtocol:
        made = _ImpatientProtocol(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        made.place = place
        return made


def make_server(
    app: Starlette,
    on_ready: Callable[[], None] | None = None,
    certificate: str = "",
    key: str = "",
    per_address: int = EACH_ADDRESS,
) -> uvicorn.Server:
    """The HTTP server of an application; ``run(sockets=[...])`` serves until it is told to stop.

    SIGTERM, SIGINT or ``should_exit = True`` stop it: no new connections, and open requests get
    ten seconds to be answered.

    Parameters
    ----------
    app : Starlette
        What is served.
    on_ready : callable
        Called once requests are accepted.
    certificate, key : str
        PEM files, with which it speaks TLS only; the key may be in the certificate's file. Without
        a certificate it does not speak TLS.
    per_address : int
        Most connections from one address, >= 1; the application finds all in its state.
    """
    config = uvicorn.Config(
        _CutOff(app),
        http=_ImpatientProtocol,
        ssl_certfile=certificate or None,
        ssl_keyfile=key or None,
        log_config=None,
        log_level="warning",
        access_log=False,
        # A reply of ten bytes needs no hundred of headers.
        server_header=False,
        date_header=False,
        # Devices think between requests; a handshake per token would cost them a round trip.
        timeout_keep_alive=120,
        timeout_graceful_shutdown=10,
        lifespan="off",
    )
    app.state.connections = Connections(per_address)
    return _Server(config, app.state.connections, on_ready)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises
    ------
    OSError
        When the address is taken or not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=1024)
