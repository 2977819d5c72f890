"""A serving device over HTTP, for programs on the same machine.

========================  =========================================================================
``POST /v1/generate``     ``{"prompt": text, "max_tokens": n}`` up, the continued text down
``GET /health``           200 once the model is loaded; whether the LLM was reached last
``GET /v1/stats``         policy in force, tokens by stage, bytes, as JSON
========================  =========================================================================

Statuses of ``/v1/generate``: 400 the question is not understood, 408 its body did not come, 413 it
is too large, 502 the LLM server finds the device's requests invalid, 503 too many questions wait.
Each comes with ``{"error": sentence}``.

Questions are answered one at a time, in the order in which they came: one thread owns the model.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from clients.records import Stage
from fedhlm_app.client.prompted import BadPrompt
from fedhlm_app.serve_device.texts import ServedTexts
from hlm.wire import WireError
from servers.service import BodyTooLarge, bounded

GENERATE = "/v1/generate"
MOST_BYTES = 1 << 20
BODY_SECONDS = 30.0


class DeviceService:
    """The web application around the served texts.

    Parameters
    ----------
    texts : ServedTexts
        Answers; used by one thread only.
    queue : int
        Questions that may wait or be answered at a time, >= 1; further ones get 503.
    """

    def __init__(self, texts: ServedTexts, queue: int = 64) -> None:
        if queue < 1:
            raise ValueError(f"queue = {queue}: must be at least 1")
        self.texts = texts
        self.queue = queue
        self.waiting = 0
        self.statuses: Counter[str] = Counter()
        self._began = time.monotonic()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="texts")
        self.app = Starlette(
            routes=[
                Route(GENERATE, self._generate, methods=["POST"]),
                Route("/health", self._health),
                Route("/v1/stats", self._stats),
            ]
        )

    def close(self) -> None:
        """Wait for the text in work, then close the store."""
        self._thread.shutdown()
        self.texts.close()

    async def _generate(self, request: Request) -> JSONResponse:
        status, content = await self._answer(request)
        self.statuses[str(status)] += 1
        headers = {503: {"retry-after": "1"}, 408: {"connection": "close"}}.get(status)
        return JSONResponse(content, status, headers)

    async def _answer(self, request: Request) -> tuple[int, dict[str, Any]]:
        try:
            body = bytearray()
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in bounded(request, MOST_BYTES):
                    body += chunk
            prompt, max_tokens = read_question(bytes(body), self.texts.settings.tokens_per_prompt)
            if self.waiting >= self.queue:
                return 503, _error(f"busy: {self.waiting} questions wait already")
            self.waiting += 1
            try:
                loop = asyncio.get_running_loop()
                answer = await loop.run_in_executor(
                    self._thread, self.texts.answer, prompt, max_tokens
                )
            finally:
                self.waiting -= 1
        except BadPrompt as error:
            return 400, _error(str(error))
        except BodyTooLarge:
            return 413, _error(f"body: at most {MOST_BYTES} bytes are read")
        except TimeoutError:
            return 408, _error(f"body: not here within {BODY_SECONDS:g} s")
        except ClientDisconnect:
            return 400, _error("body: the connection was cut")
        except WireError as error:
            return 502, _error(str(error))
        return 200, answer.as_json()

    async def _health(self, request: Request) -> JSONResponse:
        link = self.texts.device.uplink.link
        if not link.asleep:
            return JSONResponse({"status": "ok", "llm": "ok"})
        return JSONResponse({"status": "ok", "llm": "not reached", "why": link.problem})

    async def _stats(self, request: Request) -> JSONResponse:
        texts, counts = self.texts, self.texts.counts
        # The store has a lock of its own: no need to wait for the text in work.
        stored = await asyncio.to_thread(texts.stored_tokens)
        return JSONResponse(
            {
                "model": texts.settings.slm,
                "client": texts.device.client,
                "context": texts.device.context,
                "policy": {
                    "kind": texts.settings.policy,
                    "threshold": texts.threshold,
                    "round": texts.policy.server_round,
                    "problem": texts.policy_problem,
                },
                "texts": counts["texts"],
                "stages": {stage.key: counts[stage.key] for stage in Stage},
                "bytes": {"uplink": counts["uplink"], "downlink": counts["downlink"]},
                "store": {
                    "tokens": stored,
                    "texts_lost": counts["not-stored"],
                    "problem": texts.store_problem,
                },
                "waiting": self.waiting,
                "answers": dict(self.statuses),
                "uptime_s": time.monotonic() - self._began,
            }
        )


def read_question(body: bytes, default: int) -> tuple[str, int]:
    """Prompt and `max_tokens` (`default` where it is not given) of a request's body.

    Raises
    ------
    BadPrompt
        Naming the field, its value and what is allowed.
    """
    try:
        question = json.loads(body)
    except ValueError as error:
        raise BadPrompt(f"body: no JSON ({error}); allowed: {_ALLOWED}") from None
    if not isinstance(question, dict):
        raise BadPrompt(f"body = {_shown(question)}: allowed: {_ALLOWED}")
    for name in question:
        if name not in ("prompt", "max_tokens"):
            raise BadPrompt(f"{name} = {_shown(question[name])}: unknown; allowed: {_ALLOWED}")
    prompt, max_tokens = question.get("prompt"), question.get("max_tokens", default)
    if not isinstance(prompt, str) or not prompt.strip():
        raise BadPrompt(f"prompt = {_shown(prompt)}: must be text")
    if not isinstance(max_tokens, int) or isinstance(max_tokens, bool) or max_tokens < 1:
        raise BadPrompt(f"max_tokens = {_shown(max_tokens)}: must be an integer of at least 1")
    return prompt, max_tokens


_ALLOWED = '{"prompt": text, "max_tokens": integer}'


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _error(sentence: str) -> dict[str, str]:
    return {"error": sentence}
