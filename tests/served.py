"""A served LLM in a thread of this process, on loopback."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from starlette.applications import Starlette

from hlm.wire import Limits, encode_request
from servers.access import Tokens
from servers.engine.engine import Engine
from servers.http_server import listen, make_server
from servers.llm import LanguageModelService
from servers.service import ServedLanguageModel, ServiceOptions
from tests.asking import request_of
from tests.models import random_model
from tests.wire_rows import Row

LIMITS = Limits(max_bytes=4096)


def make_service(sessions: int = 64) -> LanguageModelService:
    engine = Engine(random_model("llama", 2), max_sessions=sessions, max_context=64)
    return LanguageModelService(engine, LIMITS)


class StuckService(LanguageModelService):
    """A service whose engine waits until it is let go, and that knows what was read when.

    Attributes
    ----------
    passes : list of list of int
        For each pass, the clients whose texts it read.
    """

    def __init__(self, **options) -> None:
        super().__init__(make_service(**options).engine, LIMITS)
        self.go, self.reached = threading.Event(), threading.Event()
        self.passes: list[list[int]] = []
        score = self.engine.score

        def stuck(feeds):
            self.reached.set()
            assert self.go.wait(120)
            self.passes.append([feed.session[0] for feed in feeds])
            return score(feeds)

        self.engine.score = stuck


@contextmanager
def serving(
    service: LanguageModelService,
    port: int = 0,
    *,
    token: str | Tokens = "",
    certificate: str = "",
    key: str = "",
    per_address: int = 256,
    **options,
) -> Iterator[tuple[int, ServedLanguageModel]]:
    """A server in a thread of this process, on its port; stopped at the end."""
    tokens = Tokens(token) if isinstance(token, str) and token else token or None
    served = ServedLanguageModel(service, ServiceOptions(**options), "random", tokens)
    with serving_app(served.app, port, certificate, key, per_address) as found:
        yield found, served


@contextmanager
def serving_app(
    app: Starlette, port: int = 0, certificate: str = "", key: str = "", per_address: int = 256
) -> Iterator[int]:
    """The same of any web application; yields the port."""
    listener = listen("127.0.0.1", port)
    ready = threading.Event()
    server = make_server(app, ready.set, certificate, key, per_address)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        assert ready.wait(120)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(120)
        assert not thread.is_alive()


def payload(session: int = 0, tokens=(5, 9, 2), draft: int = 7, start: int = 0, client: int = 0):
    row = Row(session, start, np.asarray(tokens, np.int64), draft)
    return encode_request(request_of("greedy", [row], client=client, feedback=True))
