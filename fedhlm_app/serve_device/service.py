"""A serving device over HTTP, for programs and people on the same machine.

=============================  ====================================================================
``GET /``                      a page to write and read on
``POST /v1/completions``       text to continue, as OpenAI's API has it
``POST /v1/chat/completions``  a chat, for models with a chat template
``GET /v1/models``             the one model there is
``GET /healthz``               200 once the model is loaded, and whether the LLM was reached last
``GET /readyz``                200 while questions are taken and answered, else 503
``GET /v1/stats``              policy in force, tokens by stage, bytes, as JSON
``GET /metrics``               counters for Prometheus
=============================  ====================================================================

Statuses: 400 the question is not understood, 401 without the token that is wanted, 403 it is asked
under another name or by a page of another site, 404 no such model or address, 408 its body did not
come, 413 it is too large, 415 it is no JSON, 500 the model failed, 502 the LLM server finds the
device's requests invalid, 503 too many questions wait, or the LLM is away and nothing else was
wanted. Errors have OpenAI's shape.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from fedhlm_app.client.prompted import BadPrompt, Continuation, Token
from fedhlm_app.serve_device.account import metrics, stats
from fedhlm_app.serve_device.answers import Answer, event
from fedhlm_app.serve_device.guard import LOOPBACK, OwnSite
from fedhlm_app.serve_device.lockstep import Event, Job, LlmAway, Lockstep
from fedhlm_app.serve_device.page import page
from fedhlm_app.serve_device.questions import MODEL, Question, unknown_model
from fedhlm_app.serve_device.refused import Refused
from fedhlm_app.serve_device.texts import ServedTexts
from hlm.arrays import IntArray
from hlm.wire import WireError
from servers.access import WANTED, BearerToken, Tokens
from servers.connections import Connections
from servers.http_server import CALLER_GONE, BodyTooLarge, bounded
from servers.metrics import PAGE_TYPE, Seen, Watch

MOST_BYTES = 1 << 20
BODY_SECONDS = 30.0
TOGETHER = 16
"""Most texts that are written at a time; further ones wait until some are done."""


class DeviceService:
    """The web application around the served texts.

    Parameters
    ----------
    texts : ServedTexts
        Answers.
    queue : int
        Questions that may wait or be answered at a time, >= 1; further ones get 503.
    needs_llm : bool
        A question fails where the LLM should have decided a token and did not, instead of being
        answered by the small model alone.
    hosts : collection of str
        Names and addresses under which it may be asked, see `OwnSite`.
    tokens : Tokens, optional
        Those of which callers must bring one, but for the page and ``/health``.
    """

    def __init__(
        self,
        texts: ServedTexts,
        queue: int = 64,
        *,
        needs_llm: bool = False,
        hosts: Collection[str] = LOOPBACK,
        tokens: Tokens | None = None,
    ) -> None:
        if queue < 1:
            raise ValueError(f"queue = {queue}: must be at least 1")
        self.texts = texts
        self.queue = queue
        self.statuses: Counter[str] = Counter()
        self.began = time.monotonic()
        self.lockstep = Lockstep(texts, TOGETHER, needs_llm)
        paths = [f"/v1/{name}" for name in ("completions", "chat/completions", "models", "stats")]
        self.seen = Seen(["/", *paths])
        open_paths = ("/", "/health", "/healthz", "/readyz")
        guard = [Middleware(BearerToken, tokens, open_paths, self._no_token)] if tokens else []
        self.app = Starlette(
            routes=[
                Route("/", page),
                Route("/v1/completions", self._write, methods=["POST"]),
                Route("/v1/chat/completions", self._write, methods=["POST"]),
                Route("/v1/models", self._models),
                Route("/v1/models/{name}", self._models),
                Route("/health", self._health),
                Route("/healthz", self._health),
                Route("/readyz", self._ready),
                Route("/metrics", self._metrics),
                Route("/v1/stats", self._stats),
            ],
            middleware=[Middleware(Watch, self.seen), Middleware(OwnSite, hosts), *guard],
            exception_handlers={Refused: self._refuse, HTTPException: _no_such_address},
        )

    def close(self) -> None:
        """Wait for the texts in work, then close the store."""
        self.lockstep.close()
        self.texts.close()

    def _no_token(self) -> Response:
        self.statuses["401"] += 1
        return JSONResponse(Refused(401, WANTED, None, "invalid_api_key").as_json())

    async def _refuse(self, request: Request, refused: Exception) -> Response:
        assert isinstance(refused, Refused)
        self.statuses[str(refused.status)] += 1
        request.scope["about"]["refused"] = refused.code or str(refused.status)
        headers = {503: {"retry-after": "1"}, 408: {"connection": "close"}}.get(refused.status)
        return JSONResponse(refused.as_json(), refused.status, headers)

    async def _write(self, request: Request) -> Response:
        chat = request.url.path.endswith("/chat/completions")
        question = Question(await _body(request), chat, self.texts.settings)
        prompt, most = await asyncio.to_thread(self._read, question)
        if self.lockstep.open >= self.queue:
            message = f"busy: {self.lockstep.open} questions wait already"
            raise Refused(503, message, None, "busy")
        job = Job(prompt, most, question.seed, question.stop)
        answer = Answer(question, len(prompt))
        self.lockstep.submit(job)
        handed_on = False
        # After the whole body, the next message of a connection is that it was closed.
        gone = asyncio.ensure_future(request.receive())
        try:
            first = await _next(job, gone)
            self.statuses["200"] += 1
            if question.stream:
                handed_on = True
                return _Stream(job, _chunks(first, job, answer))
            tokens: list[Token] = []
            while not isinstance(first, Continuation):
                tokens += first
                first = await _next(job, gone)
            return JSONResponse(answer.whole(tokens, first, _finish(job, first)))
        except ClientDisconnect:
            raise Refused(CALLER_GONE, "the caller has gone") from None
        finally:
            gone.cancel()
            job.left = not handed_on

    def _read(self, question: Question) -> tuple[IntArray, int]:
        """The tokens of a prompt, and how many new ones it may get."""
        device, param = self.texts.device, "messages" if question.chat else "prompt"
        try:
            prompt = device.read_prompt(question.prompt, question.most or 1)
        except BadPrompt as error:
            raise Refused(400, str(error), param) from None
        room = device.context - len(prompt)
        return prompt, question.most or min(room, self.texts.settings.tokens_per_prompt)

    async def _models(self, request: Request) -> Response:
        texts = self.texts
        pair = {"slm": texts.settings.slm, "llm": texts.settings.llm}
        model = {
            "id": MODEL,
            "object": "model",
            "created": 0,
            "owned_by": MODEL,
            "fedhlm": {**pair, "context": texts.device.context},
        }
        name = request.path_params.get("name")
        if name is None:
            return JSONResponse({"object": "list", "data": [model]})
        if name != MODEL:
            raise unknown_model(name)
        return JSONResponse(model)

    async def _health(self, request: Request) -> Response:
        link = self.texts.link
        if not link.asleep:
            return JSONResponse({"status": "ok", "llm": "ok"})
        return JSONResponse({"status": "ok", "llm": "not reached", "why": link.problem})

    async def _ready(self, request: Request) -> Response:
        link, problem = self.texts.device.uplink.link, ""
        if self.lockstep.open >= self.queue:
            problem = f"{self.lockstep.open} questions wait"
        elif self.lockstep.needs_llm and link.asleep:
            problem = f"the LLM is not there: {link.problem}"
        if problem:
            return JSONResponse({"status": "not ready", "why": problem}, 503)
        return JSONResponse({"status": "ready"})

    async def _metrics(self, request: Request) -> Response:
        connections: Connections = request.app.state.connections
        return Response(metrics(self, connections), media_type=PAGE_TYPE)

    async def _stats(self, request: Request) -> Response:
        # The store has a lock of its own: no need to wait for the texts in work.
        stored = await asyncio.to_thread(self.texts.stored_tokens)
        return JSONResponse(stats(self, stored))


class _Stream(StreamingResponse):
    """Server-sent events of a text, which ends when nobody reads them any more."""

    def __init__(self, job: Job, events: AsyncIterator[str]) -> None:
        # A proxy that can be told so keeps nothing back.
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._job.left = True


async def _chunks(first: Event, job: Job, answer: Answer) -> AsyncIterator[str]:
    for line in answer.begin():
        yield line
    try:
        while not isinstance(first, Continuation):
            assert isinstance(first, list)
            yield answer.chunk(first)
            first = await _next(job)
    except Refused as refused:
        yield event(refused.as_json())
        return
    for line in answer.end(first, _finish(job, first)):
        yield line


async def _next(job: Job, gone: asyncio.Future[Any] | None = None) -> list[Token] | Continuation:
    """What comes next of a text.

    Raises
    ------
    Refused
        When that is a failure.
    ClientDisconnect
        When whoever asked hung up.
    """
    coming = asyncio.ensure_future(job.events.get())
    waited = {coming} if gone is None else {coming, gone}
    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
    if not coming.done():
        coming.cancel()
        raise ClientDisconnect
    found = coming.result()
    if isinstance(found, LlmAway):
        raise Refused(503, str(found), None, "llm_unreachable")
    if isinstance(found, WireError):
        raise Refused(502, str(found), None, "llm_refused")
    if isinstance(found, Exception):
        raise Refused(500, str(found))
    return found


async def _body(request: Request) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in bounded(request, MOST_BYTES):
                body += chunk
    except BodyTooLarge:
        raise Refused(413, f"body: at most {MOST_BYTES} bytes are read") from None
    except TimeoutError:
        raise Refused(408, f"body: not here within {BODY_SECONDS:g} s") from None
    except ClientDisconnect:
        raise Refused(400, "body: the connection was cut") from None
    return bytes(body)


def _finish(job: Job, text: Continuation) -> str:
    return "stop" if job.stopped or text.ended else "length"


async def _no_such_address(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail.lower()}"
    if error.status_code == 404:
        message += "; programs ask POST /v1/completions (base URL /v1), people the page at /"
    elif allowed := (error.headers or {}).get("Allow"):
        message += f"; allowed: {allowed}"
    refused = Refused(error.status_code, message).as_json()
    return JSONResponse(refused, error.status_code, error.headers)
