"""Streams and verdicts of many devices on one LLM server, against the bare batched decode.

``python -m benchmarks.streams`` writes ``benchmarks/out/streams.json``. `bare` steps the engine by
hand: one pass a token over all texts, top token, append. `together` serves as many devices through
the batcher, three of four reading a stream, the others asking for one token after the other. Both
sides decode as many tokens, take turns in one process, and are compared by processor time of the
thread that runs the engine. `slowest` is the longest time in which a device
got a token, over the median.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

import numpy as np

from benchmarks._pair import add_pair_options, pair_settings
from benchmarks._report import write_report

PROMPT = 24


def prompt(client: int, vocab: int) -> np.ndarray[Any, Any]:
    """The text that a device begins with."""
    return np.random.default_rng(client).integers(1, vocab, PROMPT)


def bare(engine: Any, devices: int, span: int) -> float:
    """Processor seconds a token."""
    from servers.backend import Feed

    nothing, sessions = np.empty(0, np.int64), [("bare", client) for client in range(devices)]
    feeds = [Feed(s, 0, prompt(s[1], engine.vocab), np.array([PROMPT])) for s in sessions]
    begin = time.thread_time()
    engine.score(feeds)
    for place in range(PROMPT, PROMPT + span):
        found = engine.score([Feed(s, place, nothing, np.array([place])) for s in sessions])
        for session, logits in zip(sessions, found, strict=True):
            engine.append(session, int(logits.argmax()))
    return (time.thread_time() - begin) / (devices * span)


async def together(
    service: Any, devices: int, span: int, window: int, askers: bool
) -> tuple[float, float]:
    """Processor seconds a token, and how long the slowest device took over the median."""
    from hlm.wire import NO_TOKEN, Request, Rows, decode_reply, encode_request
    from hlm.wire.frames import FrameReader
    from hlm.wire.stream import Control, Opening, encode_control, encode_opening
    from servers.batcher import RequestBatcher

    class Timed(RequestBatcher):
        seconds = 0.0

        def _turn(self, *turn: Any) -> Any:
            begin = time.thread_time()
            try:
                return super()._turn(*turn)
            finally:
                self.seconds += time.thread_time() - begin

    vocab, identity = service.engine.vocab, bytes(16)
    batcher = Timed(service)

    def request(client: int, text: Any, start: int = 0) -> Request:
        from hlm.wire import PrefixDigest, joint_digest

        one = np.zeros(1, np.int64)
        rows = Rows(one, one + start, one + len(text) - start, text[start:], one + text[-1])
        digest = 0
        if start:
            prefix = PrefixDigest(identity).at(text, start)
            digest = joint_digest(identity, [(0, start, prefix)])
        begins = b"" if start else identity
        return Request("greedy", vocab, rows, client=client, identity=begins, digest=digest)

    async def read(client: int) -> float:
        asked = request(client, prompt(client, vocab))
        reader, written, credit = FrameReader(asked), 0, window
        begin = time.perf_counter()
        async for pieces in batcher.stream(encode_opening(Opening(asked, client, span, window))):
            for frame in reader.feed(pieces):
                written += len(frame.tokens[0])
            if reader.running and credit < span and 2 * (credit - written) <= window:
                credit = min(written + window, span)
                batcher.submit(encode_control(Control(client, credit)))
        return (time.perf_counter() - begin) / span

    async def ask(client: int) -> float:
        text, held, begin = prompt(client, vocab), 0, time.perf_counter()
        for _ in range(span):
            asked = request(client, text, held)
            reply = decode_reply(await batcher.exchange(encode_request(asked)), asked)
            assert reply.tokens[0] != NO_TOKEN
            text = np.append(text, reply.tokens)
            held = len(text)
        return (time.perf_counter() - begin) / span

    async def all_devices() -> list[float]:
        asking = [ask(c) if askers and c % 4 == 3 else read(c) for c in range(1, devices + 1)]
        return await asyncio.gather(*asking)

    paces = np.array(await all_devices())
    return batcher.seconds / (devices * span), float(paces.max() / np.median(paces))


def measure(options: argparse.Namespace, devices: int) -> dict[str, float]:
    """Both sides in turn; medians of what one took against the other in each repetition."""
    import torch

    from fedhlm_app.hosting.llm import build_service

    torch.set_num_threads(1)
    span, window = options.span, options.window
    service = build_service(pair_settings(options, llm_sessions=2 * devices + 2))
    found: dict[str, list[float]] = {"bare": [], "streams": [], "together": [], "slowest": []}
    bare(service.engine, devices, span)  # warms up
    for _ in range(options.repeats):
        found["bare"].append(bare(service.engine, devices, span))
        for askers in (False, True):
            seconds, worst = asyncio.run(together(service, devices, span, window, askers))
            found["together" if askers else "streams"].append(seconds)
            found["slowest"].append(worst)
    shares = {
        f"{name}_of_bare": float(np.median(np.divide(found["bare"], found[name])))
        for name in ("streams", "together")
    }
    bare_ms = 1e3 * float(np.median(found["bare"]))
    return {"bare_ms": bare_ms, **shares, "slowest": max(found["slowest"])}


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--span", type=int, default=48, help="tokens of each device")
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    add_pair_options(parser, idle="slm")
    options = parser.parse_args()
    figures = {str(devices): measure(options, devices) for devices in options.devices}
    print(figures)
    print(write_report("streams", {**vars(options), **figures}))


if __name__ == "__main__":
    main()
