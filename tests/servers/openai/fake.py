"""Servers that speak OpenAI's API as vLLM, llama.cpp, llama-cpp-python and hosted ones do.

Each takes just what its model takes and refuses the rest as it does; all write what one model puts
greedily. Faults are put in between by a function of the answer that would have been given.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from fedhlm_app.models.load import load_llm
from fedhlm_app.models.vocabulary import load_tokenizer
from tests.served import serving_app

OPENAI = {
    "model", "prompt", "max_tokens", "temperature", "top_p", "presence_penalty",
    "frequency_penalty", "logprobs", "stream",
}  # fmt: skip
KEY = "sk-1234567890abcdef1234"
MODEL = "builtin-7m"


@lru_cache(maxsize=4096)
def greedy(ids: tuple[int, ...]) -> list[tuple[int, float]]:
    """The five most likely next tokens with their log-probabilities, the first one first."""
    with torch.inference_mode():
        logits = load_llm("builtin")(torch.tensor([ids])).logits[0, -1].double().log_softmax(0)
    top = logits.topk(5)
    found = list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return sorted(found, key=lambda one: (-one[1], one[0]))


class Fake:
    """One server.

    Parameters
    ----------
    kind : {"vllm", "vllm-old", "llama.cpp", "llama-cpp-python", "hosted"}
        Whose manners it has.
    fault : callable, optional
        From the number of a request for completions (from 0) and its body to what is answered
        instead; None: nothing is wrong.
    change : callable, optional
        From the choice of an answer to another one.
    key : str
        That it wants; empty: none.
    model : callable
        From token ids to likely next ones with their log-probabilities, the first one chosen.
    """

    def __init__(
        self,
        kind: str,
        fault: Callable[[int, dict[str, Any]], Response | None] = lambda number, body: None,
        change: Callable[[dict[str, Any]], dict[str, Any]] = lambda choice: choice,
        key: str = "",
        model: Callable[[tuple[int, ...]], list[tuple[int, float]]] = greedy,
    ) -> None:
        self.kind, self.fault, self.change = kind, fault, change
        self.key, self.model = key, model
        self.bodies: list[dict[str, Any]] = []
        self.written = self.stopped = 0
        self.tokenizer = load_tokenizer("builtin")
        self.app = Starlette(
            routes=[
                Route("/v1/models", self.models),
                Route("/v1/completions", self.completions, methods=["POST"]),
            ]
        )

    @contextmanager
    def serving(self):
        with serving_app(self.app) as port:
            yield f"http://127.0.0.1:{port}/v1"

    async def models(self, request: Request) -> Response:
        one = {"id": MODEL, "object": "model"}
        if self.kind.startswith("vllm"):
            one["max_model_len"] = 100
        return self._unauthorized(request) or JSONResponse({"object": "list", "data": [one]})

    def _unauthorized(self, request: Request) -> Response | None:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            given = request.headers.get("authorization")
            return JSONResponse({"error": f"Incorrect API key provided: {given}"}, 401)
        return None

    async def completions(self, request: Request) -> Response:
        if refused := self._unauthorized(request):
            return refused
        body = await request.json()
        self.bodies.append(body)
        if answer := self.fault(len(self.bodies) - 1, body):
            return answer
        if self.kind == "hosted" and (unknown := body.keys() - OPENAI):
            return JSONResponse({"error": {"message": f"Unrecognized: {sorted(unknown)}"}}, 400)
        prompt = body["prompt"]
        several = isinstance(prompt, list) and not isinstance(prompt[0], int)
        prompts = prompt if several else [prompt]
        if self.kind == "llama-cpp-python":
            if isinstance(prompt, list) and not all(isinstance(one, str) for one in prompt):
                return JSONResponse({"error": "Input should be a valid string"}, 422)
            if len(prompts) > 1 or body.get("logprobs"):
                return PlainTextResponse("internal error", 500)
        texts = [
            self.tokenizer.encode(one, add_special_tokens=False) if isinstance(one, str) else one
            for one in prompts
        ]
        if body.get("stream"):
            return StreamingResponse(self._events(texts[0], body), media_type="text/event-stream")
        parts = [self._answer(index, text, body) for index, text in enumerate(texts)]
        if self.kind == "llama.cpp" and len(parts) > 1:
            return JSONResponse(parts)
        if len(parts) > 1:
            usage = {name: sum(part["usage"][name] for part in parts) for name in parts[0]["usage"]}
            choices = [part["choices"][0] for part in parts]
            parts = [{"choices": choices[::-1], "usage": usage}]
        # Not all servers keep to JSON, which has no NaN.
        return Response(json.dumps(parts[0]), media_type="application/json")

    def _new(self, ids: list[int], count: int):
        """Tokens after a text, up to its end, and with each the likely ones."""
        for _ in range(count):
            likely = self.model(tuple(ids))
            yield likely
            if likely[0][0] == self.tokenizer.eos_token_id:
                return
            ids = [*ids, likely[0][0]]

    def _text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True).replace("\ufffd", "")

    def _answer(self, index: int, ids: list[int], body: dict[str, Any]) -> dict[str, Any]:
        new = list(self._new(ids, body["max_tokens"]))
        own = [likely[0][0] for likely in new]
        ended = own[-1] == self.tokenizer.eos_token_id
        choice = {
            "index": index,
            "text": self._text(own),
            "finish_reason": "stop" if ended else "length",
            "logprobs": self._logprobs(new, body),
        }
        if self.kind == "vllm" and body.get("return_token_ids"):
            choice["token_ids"] = own
        if ended and self.kind == "llama-cpp-python":
            own = own[:-1]
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(own)}
        return {"choices": [self.change(choice)], "usage": usage}

    def _logprobs(self, new, body: dict[str, Any]):
        if not body.get("logprobs"):
            return None
        if self.kind == "llama.cpp":
            # Tokens that leave a character unfinished are not among them.
            shown = [likely for likely in new if self._whole(likely[0][0])]
            content = [
                {
                    "id": likely[0][0],
                    "token": self._text([likely[0][0]]),
                    "logprob": likely[0][1],
                    "top_logprobs": [{"id": token, "logprob": value} for token, value in likely],
                }
                for likely in shown
            ]
            return {"content": content} if content else None
        as_ids = self.kind.startswith("vllm") and body.get("return_tokens_as_token_ids")
        name = (
            (lambda token: f"token_id:{token}") if as_ids else (lambda token: self._text([token]))
        )
        return {
            "tokens": [name(likely[0][0]) for likely in new],
            "token_logprobs": [likely[0][1] for likely in new],
            "top_logprobs": [{name(token): value for token, value in likely} for likely in new],
        }

    def _whole(self, token: int) -> bool:
        return "\ufffd" not in self.tokenizer.decode([token])

    async def _events(self, ids: list[int], body: dict[str, Any]):
        held: list[int] = []
        try:
            for likely in self._new(ids, body["max_tokens"]):
                self.written += 1
                held.append(likely[0][0])
                text = self.tokenizer.decode(held, skip_special_tokens=True)
                choice = {"index": 0, "text": "", "logprobs": self._logprobs([likely], body)}
                if "\ufffd" not in text:
                    choice["text"], held = text, []
                elif self.kind == "llama.cpp":
                    continue
                if self.kind == "vllm" and body.get("return_token_ids"):
                    choice["token_ids"] = [likely[0][0]]
                yield f"data: {json.dumps({'choices': [self.change(choice)]})}\n\n".encode()
            last = {"index": 0, "text": "", "finish_reason": "length"}
            yield f"data: {json.dumps({'choices': [last]})}\n\ndata: [DONE]\n\n".encode()
        finally:
            self.stopped += 1
