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
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import httpx
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from hlm.wire import Limits, WireError
from servers.access import WANTED, BearerToken, Tokens
from servers.bodies import Bodies, full_up
from servers.connections import EACH_ADDRESS
from servers.edge.server import EdgeServer
from servers.http_server import OPEN_PATHS
from servers.metrics import PAGE_TYPE, Page, Seen, Watch
from servers.origin import Full, Origin, Shared
from servers.refusals import Refusals, Slowed

CLOUD = "cloud"
"""Name under which the token of who gives orders is issued (`fedhlm keys issue cloud`)."""

ONWARD = ("exchange", "stream", "stats")
"""What the LLM's server is asked, under ``/v1``."""

MOST_RUNS = 8
"""Runs at a time; one more ends the oldest."""

AT_A_TIME = 8
"""Messages of one device, or address, that are answered at a time; its others wait."""

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
        self.bodies = Bodies((limits or Limits()).max_bytes)
        self._onward = Shared(EACH_ADDRESS)
        self._turns = WeakValueDictionary[Origin, asyncio.Semaphore]()
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
            middleware=[Middleware(Watch, self.seen), Middleware(Slowed, Refusals()), *guard],
        )

    def _refuse(self) -> Response:
        self.counts["401"] += 1
        return PlainTextResponse(WANTED)

    async def _exchange(self, request: Request) -> Response:
        return await self.bodies.answer(request, partial(self._ask, request))

    async def _ask(self, request: Request, payload: bytes, origin: Origin) -> Response:
        server = self.runs.get(request.path_params["run"])
        if server is None:
            return _no_run()
        turns = self._turns.setdefault(origin, asyncio.Semaphore(AT_A_TIME))
        try:
            async with turns:
                answer = await run_in_threadpool(server.handle, payload, origin.device)
        except WireError as error:
            request.scope["about"]["refused"] = "invalid"
            return PlainTextResponse(str(error), 400)
        self.counts["bytes-uplink"] += len(payload)
        self.counts["bytes-downlink"] += len(answer)
        return Response(answer)

    async def _order(self, request: Request) -> Response:
        """What the cloud says of a run; devices may not."""
        if (device := request.scope["about"].get("device", "")) not in ("", CLOUD):
            request.scope["about"]["refused"] = "order"
            return PlainTextResponse(f"device {device}: orders are the cloud's", 403)
        return await self.bodies.answer(request, partial(self._take_order, request))

    async def _take_order(self, request: Request, body: bytes, origin: Origin) -> Response:
        run, order = request.path_params["run"], request.path_params["order"]
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
            return _no_run()
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
        return await self.bodies.answer(request, partial(self._send_on, request))

    async def _send_on(self, request: Request, body: bytes, origin: Origin) -> Response:
        assert self._upstream is not None
        token = request.headers.get("authorization")
        sent = self._upstream.build_request(
            request.method,
            request.url.path.lstrip("/"),
            content=body,
            headers={} if token is None else {"authorization": token},
        )
        try:
            self._onward.take(origin, 1)
        except Full as full:
            request.scope["about"]["refused"] = "queue-share" if full.share else "queue"
            return await full_up(full, "no more requests are passed on at a time")
        over = partial(self._onward.take, origin, -1)
        try:
            answer = await self._upstream.send(sent, stream=True)
        except httpx.HTTPError as error:
            over()
            request.scope["about"]["refused"] = "llm-server"
            return PlainTextResponse(f"the LLM's server does not answer: {error}", 503)
        except asyncio.CancelledError:
            over()
            raise
        return _Onward(answer, over)

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _stats(self, request: Request) -> Response:
        runs = {run: dict(vars(server.stats)) for run, server in self.runs.items()}
        return JSONResponse({"kind": "edge", "runs": runs, "counts": dict(self.counts)})

    async def _metrics(self, request: Request) -> Response:
        page = Page()
        self.seen.add_to(page)
        request.app.state.connections.add_to(page)
        page.add("gauge", "body_bytes", "Bytes of bodies that are held.", self.bodies.held.taken)
        page.add("gauge", "runs", "Runs that are served.", len(self.runs))
        for name, about in (("rows", "Tokens asked about."), ("by_peers", "Tokens peers decided.")):
            counts = {f'run="{run}"': getattr(one.stats, name) for run, one in self.runs.items()}
            page.add("gauge", f"edge_{name}", about, counts)
        return PlainTextResponse(page.text(), media_type=PAGE_TYPE)


def _no_run() -> Response:
    return PlainTextResponse("this edge server knows no such run", 503)


class _Onward(StreamingResponse):
    """What the LLM's server answers; `over` is called however this ends."""

    def __init__(self, answer: httpx.Response, over: Callable[[], None]) -> None:
        names = ("content-type", "content-length", "content-encoding")
        headers = {name: answer.headers[name] for name in names if name in answer.headers}
        headers["x-accel-buffering"] = "no"
        super().__init__(answer.aiter_raw(), answer.status_code, headers)
        self._answer, self._over = answer, over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._over()
            # Who hung up has cancelled this task: closing is another's.
            _closing.add(task := asyncio.ensure_future(self._answer.aclose()))
            task.add_done_callback(_closing.discard)


_closing: set[asyncio.Future[None]] = set()
"""Kept from being collected."""
