"""A device that reads streams of a tiny LLM over any transport, and what it should read."""

from __future__ import annotations

import time

import numpy as np
import torch

from fedhlm_app.transport.transports import DirectTransport
from hlm.wire import NO_TOKEN
from hlm.wire.frames import FrameReader
from hlm.wire.stream import Control, Opening, Outcome, encode_control, encode_opening
from servers.engine.engine import Engine
from servers.llm import LanguageModelService
from tests.asking import request_of
from tests.models import VOCAB, random_model
from tests.wire_rows import Row, listed, told

MODEL = random_model("llama", 2)
SAMPLED = {"verifier": "coupled", "decoding": "sampled", "seed": 3}
CONTEXT = 48
SPAN = 20


def make_service(sessions=32) -> LanguageModelService:
    return LanguageModelService(Engine(MODEL, max_sessions=sessions, max_context=CONTEXT))


def asked(texts=((5, 9, 2),), drafts=None, client=0, verifier="greedy", **options):
    rows = [
        Row(number, 0, np.array(text), 7 if drafts is None else drafts[number])
        for number, text in enumerate(texts)
    ]
    return request_of(verifier, rows, client=client, feedback=True, **options)


def prompts(count, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(1, VOCAB, random.integers(2, 9)).tolist() for _ in range(count)]


def own_text(text, count, end=CONTEXT):
    """What the LLM writes greedily."""
    text = list(text)
    with torch.inference_mode():
        while count and len(text) <= end:
            text.append(int(MODEL(torch.tensor([text])).logits[0, -1].argmax()))
            count -= 1
    return text


class Device:
    """Reads one stream, and does what a test says.

    Parameters
    ----------
    server : LanguageModelService or Transport
        Where the stream comes from.
    """

    def __init__(self, server, request, span=SPAN, credit=64, key=77):
        self.service = server
        self.transport = DirectTransport(server) if hasattr(server, "handle") else server
        self.request, self.key = request, key
        self.reader = FrameReader(request)
        payload = encode_opening(Opening(request, key, span, credit))
        self.frames = self.transport.stream(payload)
        self.tokens = {index: [] for index in range(len(request.rows))}
        self.ends = {}

    def read(self) -> bool:
        """Read one piece, if there is one."""
        chunk = next(self.frames, None)
        if chunk is None:
            return False
        for frame in self.reader.feed(chunk):
            for row, part in frame.tokens.items():
                self.tokens[row] += part.tolist()
            self.ends |= frame.ends
        return True

    def read_all(self):
        while self.read():
            pass
        assert self.reader.finished
        return self

    def read_along(self, window, pause=lambda: None):
        """Read all, never more than a window ahead of what was said to be read."""
        while self.read():
            pause()
            written = self.written
            if self.reader.running and written < SPAN:
                self.control(credit=written + window)
        assert self.reader.finished
        return self

    @property
    def written(self):
        return max(map(len, self.tokens.values()))

    def control(self, credit=0, stops=None, key=None) -> Outcome:
        payload = encode_control(Control(self.key if key is None else key, credit, stops or {}))
        return Outcome(self.transport.exchange(payload)[1])

    def text(self, index):
        row, reply = listed(self.request.rows)[index], told(self.reader.reply)[index]
        verdict = [] if reply.token == NO_TOKEN else [reply.token]
        return row.tokens.tolist() + verdict + self.tokens[index]

    def texts(self):
        return [self.text(index) for index in range(len(self.request.rows))]


def assert_delays_change_no_text(link, window):
    """A device that stops and starts reads what it would have read of one process."""
    random = np.random.default_rng(window)
    request = asked(prompts(3), client=window, **SAMPLED)
    delayed = Device(link, request, credit=window, key=window)
    delayed.read_along(window, lambda: time.sleep(random.exponential(0.002)))
    assert delayed.texts() == Device(make_service(), request).read_all().texts()
