"""Edge servers as a process of its own: devices ask over HTTP, the cloud leads from round to round.

``/edge/RUN/v1/exchange`` answers devices and neighbouring edge servers; the cloud's orders go to
``/edge/RUN/v1/begin``, ``open``, ``collect``, ``publish`` and ``end``. What is under ``/v1`` goes
on to the LLM's server, word for word, so that a device needs to reach no other address.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from hlm.wire import Limits, WireError
from servers.access import WANTED, BearerToken, Tokens
from servers.edge.server import EdgeServer
from servers.http_server import OPEN_PATHS, BodyTooLarge, bounded
from servers.metrics import PAGE_TYPE, Page, Seen, Watch

CLOUD = "cloud"
"""Name under which the token of who gives orders is issued (`fedhlm keys issue cloud`)."""

ONWARD = ("exchange", "stream", "stats")
"""What the LLM's server is asked, under ``/v1``."""

MOST_RUNS = 8
"""Runs at a time; one more ends the oldest."""

BODY_SECONDS = 30.0

Build = Callable[[str, Mapping[str, Any]], EdgeServer]
"""Makes the server of a run from its number and what the cloud says in ``begin``."""

logger = logging.getLogger(__name__)


class ServedEdge:
    """The web application around the edge servers of a few runs.

    Parameters
    ----------
    build : callable
        See `Build`; ValueError or KeyError where the order is none.
    tokens : Tokens, optional
        Those of which callers must bring one, but for `OPEN_PATHS`. One that names a device
        other than `CLOUD` gives no orders.
    upstream : httpx.AsyncClient, optional
        Reaches the LLM's server; without, nothing is passed on.
    limits : Limits
        Largest message read.
    """

    def __init__(
        self,
        build: Build,
        tokens: Tokens | None = None,
        upstream: httpx.AsyncClient | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._build = build
        self._upstream = upstream
        self._limits = Limits() if limits is None else limits
        self._beginning = asyncio.Lock()
        self.runs: dict[str, EdgeServer] = {}
        self.counts: Counter[str] = Counter()
        self.seen = Seen((*(f"/v1/{path}" for path in ONWARD), *OPEN_PATHS))
        guard = [Middleware(BearerToken, tokens, OPEN_PATHS, self._refuse)] if tokens else []
        onward = [Route(f"/v1/{path}", self._pass_on, methods=["GET", "POST"]) for path in ONWARD]
        self.app = Starlette(
            routes=[
                Route("/edge/{run}/v1/exchange", self._exchange, methods=["POST"]),
                Route("/edge/{run}/v1/{order}", self._order, methods=["POST"]),
                Route("/edge/stats", self._stats),
                Route("/metrics", self._metrics),
                *(Route(path, self._health) for path in OPEN_PATHS),
                *(onward if upstream is not None else ()),
            ],
            middleware=[Middleware(Watch, self.seen), *guard],
        )

    def _refuse(self) -> Response:
        self.counts["401"] += 1
        return PlainTextResponse(WANTED)

    async def _body(self, request: Request) -> bytes | Response:
        """What was sent; an answer where it cannot be had."""
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return b"".join([part async for part in bounded(request, self._limits.max_bytes)])
        except BodyTooLarge:
            return PlainTextResponse(f"body: at most {self._limits.max_bytes} bytes are read", 413)
        except (TimeoutError, ClientDisconnect):
            headers = {"connection": "close"}
            return PlainTextResponse(f"body: not here within {BODY_SECONDS:g} s", 408, headers)

    async def _exchange(self, request: Request) -> Response:
        server = self.runs.get(request.path_params["run"])
        if server is None:
            return PlainTextResponse("this edge server knows no such run", 503)
        payload = await self._body(request)
        if isinstance(payload, Response):
            return payload
        try:
            answer = await run_in_threadpool(server.handle, payload)
        except WireError as error:
            return PlainTextResponse(str(error), 400)
        self.counts["bytes-uplink"] += len(payload)
        self.counts["bytes-downlink"] += len(answer)
        return Response(answer)

    async def _order(self, request: Request) -> Response:
        """What the cloud says of a run; devices may not."""
        if (device := request.scope["about"].get("device", "")) not in ("", CLOUD):
            return PlainTextResponse(f"device {device}: orders are the cloud's", 403)
        run, order = request.path_params["run"], request.path_params["order"]
        body = await self._body(request)
        if isinstance(body, Response):
            return body
        try:
            said = json.loads(body or b"{}")
            return await self._obey(run, order, said)
        except (ValueError, KeyError, TypeError) as error:
            return PlainTextResponse(f"{order}: {error}"[:500], 400)

    async def _obey(self, run: str, order: str, said: Mapping[str, Any]) -> Response:
        if order == "begin":
            async with self._beginning:
                if run not in self.runs:
                    built = await run_in_threadpool(self._build, run, said)
                    while len(self.runs) >= MOST_RUNS:
                        del self.runs[next(iter(self.runs))]
                    self.runs[run] = built
                self.runs[run].members = frozenset(int(member) for member in said["members"])
            return Response()
        server = self.runs.get(run)
        if server is None:
            return PlainTextResponse("this edge server knows no such run", 503)
        if order == "open":
            await run_in_threadpool(server.open, int(said["round"]), bool(said["summed"]))
        elif order == "collect":
            return Response(await run_in_threadpool(server.collect, int(said["round"])))
        elif order == "publish":
            await run_in_threadpool(server.publish)
        elif order == "end":
            del self.runs[run]
        else:
            return PlainTextResponse(
                f"{order}: allowed are begin, open, collect, publish, end", 404
            )
        return Response()

    async def _pass_on(self, request: Request) -> Response:
        """Let the LLM's server answer; it sees the caller's own token."""
        assert self._upstream is not None
        body = await self._body(request)
        if isinstance(body, Response):
            return body
        token = request.headers.get("authorization")
        sent = self._upstream.build_request(
            request.method,
            request.url.path.lstrip("/"),
            content=body,
            headers={} if token is None else {"authorization": token},
        )
        try:
            answer = await self._upstream.send(sent, stream=True)
        except httpx.HTTPError as error:
            return PlainTextResponse(f"the LLM's server does not answer: {error}", 503)
        names = ("content-type", "content-length", "content-encoding")
        headers = {name: answer.headers[name] for name in names if name in answer.headers}
        headers["x-accel-buffering"] = "no"
        return StreamingResponse(_parts(answer), answer.status_code, headers)

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _stats(self, request: Request) -> Response:
        runs = {run: dict(vars(server.stats)) for run, server in self.runs.items()}
        return JSONResponse({"kind": "edge", "runs": runs, "counts": dict(self.counts)})

    async def _metrics(self, request: Request) -> Response:
        page = Page()
        self.seen.add_to(page)
        page.add("gauge", "runs", "Runs that are served.", len(self.runs))
        for name, about in (("rows", "Tokens asked about."), ("by_peers", "Tokens peers decided.")):
            counts = {f'run="{run}"': getattr(one.stats, name) for run, one in self.runs.items()}
            page.add("gauge", f"edge_{name}", about, counts)
        return PlainTextResponse(page.text(), media_type=PAGE_TYPE)


async def _parts(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for part in answer.aiter_raw():
            yield part
    finally:
        # Who hung up has cancelled this task: closing is another's.
        _closing.add(task := asyncio.ensure_future(answer.aclose()))
        task.add_done_callback(_closing.discard)


_closing: set[asyncio.Future[None]] = set()
"""Kept from being collected."""
