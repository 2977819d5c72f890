"""The LLM service over HTTP: one process that devices on a network reach by address.

Bodies are the messages of `hlm.wire`, unchanged. A request that cannot be served is answered with
a status and a sentence, and costs no more memory than the bound on its body.

========================  =========================================================================
``POST /v1/exchange``     a request's bytes up, the reply's bytes down; also controls of streams
``POST /v1/stream``       an opening's bytes up, frames down as they are written
``GET /health``           200 once the model is loaded
``GET /v1/stats``         model, limits and counters as JSON
========================  =========================================================================

Statuses of the first two: 400 no valid request, 401 without the token that is wanted, 408 the
body did not come, 413 body too large, 500 the engine failed, 503 too many requests wait
(``Retry-After`` says for how long to stay away).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from hlm.wire import WireError
from servers.access import BearerToken
from servers.actors import RequestBatcher
from servers.llm import LanguageModelService

EXCHANGE, STREAM = "/v1/exchange", "/v1/stream"

MOST_CONNECTIONS = 8192
"""Connections at a time, idle ones included; further ones are answered with 503."""

CALLER_GONE = 499
"""Counted as the status of a request whose caller hung up; nobody reads it."""

HEADER_SECONDS = 30.0
"""Longest wait for a request's headers, from the connection or from their first byte on."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServiceOptions:
    """How a served LLM treats its callers.

    Attributes
    ----------
    wait : float
        Seconds a request waits for others to share forward passes with, >= 0.
    most : int
        Most requests answered from shared passes, >= 1; 1 repeats bit for bit.
    queue : int
        Requests that may wait at a time, >= 1; further ones are answered with 503.
    memory_bytes : int
        Most bytes of bodies held at a time, over all requests, >= 1; 503 beyond. Decoded, a body
        takes up to six times its length.
    body_seconds : float
        Longest wait for a request's body, in s, > 0.
    answer_seconds : float
        Longest time in the queue and the engine, in s, > 0; 503 after it, and nothing is done for
        the request any more. Below what devices wait for (`llm-timeout`).
    """

    wait: float = 0.002
    most: int = 64
    queue: int = 256
    memory_bytes: int = 1 << 26
    body_seconds: float = 30.0
    answer_seconds: float = 54.0

    def __post_init__(self) -> None:
        if self.wait < 0:
            raise ValueError(f"wait = {self.wait}: must be at least 0 s")
        for name in ("most", "queue", "memory_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")
        for name in ("body_seconds", "answer_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)}: must be above 0 s")


class BodyTooLarge(Exception):
    """The body is longer than allowed."""


class ServedLanguageModel:
    """The web application around a service.

    Parameters
    ----------
    service : LanguageModelService
        Decides drafts; its limits bound a request's body.
    options : ServiceOptions
        See there.
    model : str
        Name of the model, for ``/v1/stats``.
    token : str
        Bearer token that callers of ``/v1`` must bring; empty: none.
    tokenizer : str
        Fingerprint of the model's vocabulary, for ``/v1/stats``; empty: not told.
    """

    def __init__(
        self,
        service: LanguageModelService,
        options: ServiceOptions,
        model: str = "",
        token: str = "",
        tokenizer: str = "",
    ) -> None:
        self.service = service
        self.options = options
        self.model = model
        self.tokenizer = tokenizer
        self.counts: Counter[str] = Counter()
        self.waiting = 0
        self.held = 0
        self._batcher = RequestBatcher(service, options.wait, options.most)
        self._began = time.monotonic()
        count = partial(self.counts.update, ["401"])
        self.app = Starlette(
            routes=[
                Route(EXCHANGE, self._exchange, methods=["POST"]),
                Route(STREAM, self._exchange, methods=["POST"]),
                Route("/health", self._health),
                Route("/v1/stats", self._stats),
            ],
            middleware=[Middleware(BearerToken, token, count)] if token else [],
        )

    async def _exchange(self, request: Request) -> Response:
        response = await self._answer(request)
        self.counts[str(response.status_code)] += 1
        return response

    async def _answer(self, request: Request) -> Response:
        most, body = self.service.limits.max_bytes, bytearray()
        try:
            async with asyncio.timeout(self.options.body_seconds):
                async for chunk in bounded(request, most):
                    body += chunk
                    self.held += len(chunk)
                    if self.held > self.options.memory_bytes:
                        return _busy("the bodies of other requests fill the memory for them")
            return await self._decide(bytes(body), request)
        except BodyTooLarge:
            return PlainTextResponse(f"body: at most {most} bytes are read", 413)
        except TimeoutError:
            seconds = self.options.body_seconds
            # What is still to come of the body must not be taken for a request.
            headers = {"connection": "close"}
            return PlainTextResponse(f"body: not here within {seconds:g} s", 408, headers)
        except ClientDisconnect:
            return PlainTextResponse("body: the connection was cut", 400)
        finally:
            self.held -= len(body)

    async def _decide(self, payload: bytes, request: Request) -> Response:
        if self.waiting >= self.options.queue:
            return _busy(f"{self.waiting} requests wait already")
        self.waiting += 1
        frames = self._batcher.stream(payload) if request.url.path == STREAM else None
        try:
            if frames is None:
                answer = await self._unless_gone(self._batcher.submit(payload), request)
            else:
                answer = await self._unless_gone(asyncio.ensure_future(anext(frames)), request)
        except WireError as error:
            return PlainTextResponse(str(error), 400)
        except TimeoutError:
            return _busy(f"no answer within {self.options.answer_seconds:g} s")
        except ClientDisconnect:
            return PlainTextResponse("the caller has gone", CALLER_GONE)
        except Exception as error:  # one caller's failure must not end the service for all
            logger.exception("the engine failed")
            return PlainTextResponse(f"the engine failed: {type(error).__name__}: {error}", 500)
        finally:
            self.waiting -= 1
        self.counts["bytes-uplink"] += len(payload)
        self.counts["bytes-downlink"] += len(answer)
        if frames is None:
            return Response(answer)
        # A proxy that can be told so keeps nothing back.
        return StreamingResponse(self._frames(answer, frames), headers={"x-accel-buffering": "no"})

    async def _frames(
        self, first: bytes, further: AsyncGenerator[bytes, None]
    ) -> AsyncIterator[bytes]:
        async with aclosing(further):
            yield first
            async for frames in further:
                self.counts["bytes-downlink"] += len(frames)
                yield frames

    async def _unless_gone(self, answer: asyncio.Future[bytes], request: Request) -> bytes:
        """Wait for the answer; when nobody does any more, it is cancelled.

        Raises
        ------
        TimeoutError, ClientDisconnect
            When it took too long, or the caller hung up.
        """
        # After the whole body, the next message of a connection is that it was closed.
        gone = asyncio.ensure_future(request.receive())
        try:
            done, _ = await asyncio.wait(
                (answer, gone),
                timeout=self.options.answer_seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if answer in done:
                return answer.result()
            raise ClientDisconnect if gone in done else TimeoutError
        finally:
            gone.cancel()
            answer.cancel()

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _stats(self, request: Request) -> Response:
        engine = self.service.engine
        answers = {key: count for key, count in self.counts.items() if key.isdigit()}
        return JSONResponse(
            {
                **self.service.describe(),
                "model": self.model,
                "tokenizer": self.tokenizer,
                "max_sessions": engine.max_sessions,
                "max_bytes": self.service.limits.max_bytes,
                "answer_seconds": self.options.answer_seconds,
                "uptime_s": time.monotonic() - self._began,
                "waiting": self.waiting,
                "abandoned": self._batcher.abandoned,
                "answers": answers,
                "bytes": {
                    "uplink": self.counts["bytes-uplink"],
                    "downlink": self.counts["bytes-downlink"],
                },
                "engine": dict(vars(engine.stats)),
                "streams": {
                    "open": len(self.service.streams),
                    **vars(self.service.streams.stats),
                },
            }
        )


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


def _busy(why: str) -> Response:
    return PlainTextResponse(f"busy: {why}", 503, headers={"retry-after": "1"})


class _ImpatientProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """Closes connections on which a request's headers are late, the first one's included.

    uvicorn itself only closes those that are silent after an answer.
    """

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_waiting()

    def _await_headers(self) -> None:
        """Wait for headers, but for as long as a request is in work."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._late is None:
            self._late = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


class _Server(uvicorn.Server):
    """Says when it has begun to listen."""

    on_ready: Callable[[], None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.on_ready is not None and self.started:
            self.on_ready()


def make_server(
    app: Starlette,
    on_ready: Callable[[], None] | None = None,
    certificate: str = "",
    key: str = "",
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
    """
    config = uvicorn.Config(
        app,
        http=_ImpatientProtocol,
        ssl_certfile=certificate or None,
        ssl_keyfile=key or None,
        log_level="warning",
        access_log=False,
        # A reply of ten bytes needs no hundred of headers.
        server_header=False,
        date_header=False,
        # Devices think between requests; a handshake per token would cost them a round trip.
        timeout_keep_alive=120,
        timeout_graceful_shutdown=10,
        limit_concurrency=MOST_CONNECTIONS,
        lifespan="off",
    )
    server = _Server(config)
    server.on_ready = on_ready
    return server


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises
    ------
    OSError
        When the address is taken or not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=1024)
