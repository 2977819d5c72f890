"""The LLM service over HTTP: one process that devices on a network reach by address.

Bodies are the messages of `hlm.wire`, unchanged. A request that cannot be served is answered with
a status and a sentence, and costs no more memory than the bound on its body.

========================  =========================================================================
``POST /v1/exchange``     a request's bytes up, the reply's bytes down; also controls of streams
``POST /v1/stream``       an opening's bytes up, frames down as they are written
``GET /healthz``          200 once the model is loaded; ``/health`` is the same
``GET /readyz``           200 while requests are taken and answered, else 503
``GET /v1/stats``         model, limits and counters as JSON
``GET /metrics``          counters for Prometheus
========================  =========================================================================

Statuses of the first two: 400 no valid request, 401 without the token that is wanted, 408 the
body did not come, 413 body too large, 500 the engine failed, 502 the model runs elsewhere and does
not answer, 503 too many requests wait (``Retry-After`` says for how long to stay away). No origin
(`servers.origin`) has more than half of the queue and of the memory for bodies; one that wants more
hears so after a second, and refusals wait as `servers.refusals` says.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from hlm.transport import LinkDown
from hlm.wire import WireError
from servers.access import WANTED, BearerToken, Tokens
from servers.account import metrics, stats
from servers.batcher import RequestBatcher
from servers.bodies import BODY_SECONDS, MEMORY_BYTES, Bodies, busy, full_up
from servers.http_server import CALLER_GONE, OPEN_PATHS
from servers.llm import LanguageModelService
from servers.metrics import PAGE_TYPE, Seen, Watch
from servers.origin import Full, Origin, Shared
from servers.refusals import Refusals, Slowed

EXCHANGE, STREAM = "/v1/exchange", "/v1/stream"

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
    queue: int = 512
    memory_bytes: int = MEMORY_BYTES
    body_seconds: float = BODY_SECONDS
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
    tokens : Tokens, optional
        Those of which callers must bring one, but for ``/health``.
    tokenizer : str
        Fingerprint of the model's vocabulary, for ``/v1/stats``; empty: not told.
    """

    def __init__(
        self,
        service: LanguageModelService,
        options: ServiceOptions,
        model: str = "",
        tokens: Tokens | None = None,
        tokenizer: str = "",
    ) -> None:
        self.service = service
        self.options = options
        self.model = model
        self.tokenizer = tokenizer
        self.counts: Counter[str] = Counter()
        self.waiting = Shared(options.queue)
        limits = service.limits.max_bytes, options.memory_bytes, options.body_seconds
        self.bodies = Bodies(*limits)
        self._failure = ""
        self.seen = Seen((EXCHANGE, STREAM, "/v1/stats", *OPEN_PATHS))
        self.batcher = RequestBatcher(service, options.wait, options.most)
        self.began = time.monotonic()
        guard = [Middleware(BearerToken, tokens, OPEN_PATHS, self._refuse)] if tokens else []
        self.app = Starlette(
            routes=[
                Route(EXCHANGE, self._exchange, methods=["POST"]),
                Route(STREAM, self._exchange, methods=["POST"]),
                Route("/health", self._health),
                Route("/healthz", self._health),
                Route("/readyz", self._ready),
                Route("/v1/stats", self._stats),
                Route("/metrics", self._metrics),
            ],
            middleware=[Middleware(Watch, self.seen), Middleware(Slowed, Refusals()), *guard],
        )

    def _refuse(self) -> Response:
        self.counts["401"] += 1
        return PlainTextResponse(WANTED)

    async def _exchange(self, request: Request) -> Response:
        response = await self.bodies.answer(request, partial(self._decide, request))
        self.counts[str(response.status_code)] += 1
        return response

    async def _decide(self, request: Request, payload: bytes, origin: Origin) -> Response:
        about, streams = request.scope["about"], request.url.path == STREAM
        try:
            self.waiting.take(origin, 1)
        except Full as full:
            about["refused"] = "queue-share" if full.share else "queue"
            return await full_up(full, f"{self.waiting.taken} requests wait already")
        frames = self.batcher.stream(payload, origin=origin) if streams else None
        try:
            if frames is None:
                answer = await self._unless_gone(self.batcher.submit(payload, origin), request)
            else:
                answer = await self._unless_gone(asyncio.ensure_future(anext(frames)), request)
        except WireError as error:
            about["refused"] = "invalid"
            return PlainTextResponse(str(error), 400)
        except TimeoutError:
            about["refused"] = "answer-time"
            return busy(f"no answer within {self.options.answer_seconds:g} s")
        except ClientDisconnect:
            about["refused"] = "caller-gone"
            return PlainTextResponse("the caller has gone", CALLER_GONE)
        except LinkDown as error:
            about["refused"] = "llm-server"
            self._failure = str(error)
            return PlainTextResponse(self._failure, 502)
        except Exception as error:  # one caller's failure must not end the service for all
            logger.exception("the engine failed")
            about["refused"] = "engine"
            self._failure = f"the engine failed: {type(error).__name__}: {error}"
            return PlainTextResponse(self._failure, 500)
        finally:
            self.waiting.take(origin, -1)
        self._failure = ""
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
        if answer.done():  # refused as it was read
            return answer.result()
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

    async def _ready(self, request: Request) -> Response:
        full = self.waiting.taken >= self.options.queue
        problem = self._failure or (f"{self.waiting.taken} requests wait" if full else "")
        if problem:
            return JSONResponse({"status": "not ready", "why": problem}, 503)
        return JSONResponse({"status": "ready"})

    async def _stats(self, request: Request) -> Response:
        return JSONResponse(stats(self))

    async def _metrics(self, request: Request) -> Response:
        page = metrics(self, request.app.state.connections)
        return PlainTextResponse(page, media_type=PAGE_TYPE)
