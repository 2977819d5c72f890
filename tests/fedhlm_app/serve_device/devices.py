"""Serving devices in this process, with LLMs that answer, are slow, refuse, or are not there."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from http.client import HTTPConnection
from typing import Any

from fedhlm_app.client.prompted import Ask, Continuation
from fedhlm_app.serve_device.service import DeviceService
from fedhlm_app.serve_device.texts import ServedTexts
from fedhlm_app.settings import Settings
from fedhlm_app.transport.transports import DirectTransport
from hlm.transport import Frames, LinkDown
from hlm.wire import WireError
from tests.served import serving_app

PROMPT = "Shares of the airline fell sharply after the minister"
CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


def settings(**changes) -> Settings:
    given = {"learning": "balanced", "initial-threshold": 0.3, **changes}
    return Settings.from_sources({k.replace("_", "-"): v for k, v in given.items()}, {})


class Down:
    def exchange(self, payload: bytes) -> bytes:
        raise LinkDown("cut")

    stream = exchange


class Refusing:
    def exchange(self, payload: bytes) -> bytes:
        raise WireError("vocabulary 7: allowed is 4096")

    stream = exchange


class Slow(DirectTransport):
    seconds = 0.0

    def exchange(self, payload: bytes) -> bytes:
        time.sleep(self.seconds)
        return super().exchange(payload)

    def stream(self, payload: bytes) -> Frames:
        for frames in super().stream(payload):
            time.sleep(self.seconds)
            yield frames


def served(llm, folder=None, transport=None, **changes) -> ServedTexts:
    return ServedTexts(settings(**changes), 5, transport or DirectTransport(llm), folder)


def chatting(texts: ServedTexts) -> ServedTexts:
    """The same with a chat template, which the built-in pair has not."""
    texts.device.tokenizer = copy(texts.device.tokenizer)
    texts.device.tokenizer.chat_template = CHAT
    return texts


def written(texts: ServedTexts, prompt: str, most: int, seed: int | None = None) -> Continuation:
    ask = Ask(texts.device.read_prompt(prompt, most), most, texts.session(seed))
    (answer,) = texts.answer([ask])
    return answer


@contextmanager
def serving(texts: ServedTexts, queue: int = 64, **options) -> Iterator[int]:
    """A device over HTTP in a thread, on its port."""
    service = DeviceService(texts, queue, **options)
    try:
        with serving_app(service.app) as port:
            yield port
    finally:
        service.close()


def ask(
    port: int, path: str, body: object = None, headers: Mapping[str, str] | None = None
) -> tuple[int, Any]:
    """POST a body, as JSON unless it is bytes; GET without one."""
    connection = HTTPConnection("127.0.0.1", port, timeout=120)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"content-type": "application/json", **(headers or {})}
    method = "GET" if body is None else "POST"
    connection.request(method, path, b"" if body is None else content, given)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, json.loads(text) if text.startswith("{") else text
