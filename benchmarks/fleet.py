"""An LLM server under many devices, over real connections, against the bare engine in the same run.

    python -m benchmarks.fleet [--devices 1 16 64 256 1024] [--tokens 48] [--share 0.25] [--llm X]

A device is simulated: the small model writes texts of the corpus once, and its drafts and their
uncertainties are every device's from then on. What is less sure than the threshold of `--share` is
asked of `fedhlm serve llm --batch`, a process of its own, over a connection and with a token for
each device, and the text goes on with the answer. No device waits between two questions, so `p50`
and `p99` are those of a server that is never idle. `bare` hands the engine the same questions,
those of all devices in one pass, in this process. Both sides are told by processor time, which
other work on the machine disturbs least: `of_bare` is the server's verdicts a second of its
processor time, HTTP and all, over the engine's.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch

from benchmarks._pair import add_pair_options, load_small, pair_settings, server_words
from benchmarks._report import write_report
from clients.decoding.drafting import RouterConfig
from clients.decoding.routing import Router
from clients.policy import FixedPolicy
from clients.records import TextBatch, Traffic
from fedhlm_app.client.inference import sampling_of, uncertainty_of
from fedhlm_app.data.items import load_items
from fedhlm_app.hosting.llm import build_service
from fedhlm_app.models.vocabulary import load_tokenizer
from fedhlm_app.settings import Settings
from hlm.verification import VERIFIERS
from hlm.wire import (
    PrefixDigest,
    Request,
    Rows,
    decode_reply,
    encode_request,
    joint_digest,
)
from servers.access import DeviceTokens
from servers.backend import Feed

TEXTS, PROMPT = 64, 16
IDENTITY = bytes(16)


class Fleet:
    """Drafts of the texts, which device d has as text d modulo their number.

    Attributes
    ----------
    prompts : int64 [texts, PROMPT]
    drafts : int64 [texts, tokens]
    asked : bool [texts, tokens]
        Whether a draft is less sure than the threshold.
    """

    def __init__(self, tokens: int, share: float, settings: Settings) -> None:
        tokenizer: Any = load_tokenizer(settings.slm)
        encoded = tokenizer(load_items("builtin").texts(), add_special_tokens=False)["input_ids"]
        self.prompts = np.array([ids[:PROMPT] for ids in encoded if len(ids) >= PROMPT][:TEXTS])
        config = RouterConfig(sampling_of(settings), uncertainty_of(settings), 1, 0, frozenset())
        router = Router(load_small(settings), config, FixedPolicy(True), VERIFIERS["greedy"](), [])
        texts = TextBatch(list(self.prompts), np.arange(TEXTS), room=tokens)
        made = router.generate(texts, tokens, Traffic())
        self.drafts = made.draft
        self.asked = made.uncertainty > np.quantile(made.uncertainty, 1 - share)

    def verdicts(self, devices: int) -> int:
        """Questions of all devices."""
        return int(sum(self.asked[device % TEXTS].sum() for device in range(devices)))


def bare(engine: Any, fleet: Fleet, devices: int) -> float:
    """Processor seconds a verdict of the engine alone."""
    texts = [list(fleet.prompts[device % TEXTS]) for device in range(devices)]
    held = [0] * devices
    seconds = 0.0
    for place in range(fleet.drafts.shape[1]):
        feeds = []
        for device, text in enumerate(texts):
            if fleet.asked[device % TEXTS, place]:
                new = np.array(text[held[device] :], np.int64)
                feeds.append(Feed(("bare", device), held[device], new, np.array([len(text)])))
            else:
                text.append(int(fleet.drafts[device % TEXTS, place]))
        begin = time.thread_time()
        for feed, logits in zip(feeds, engine.score(feeds) if feeds else [], strict=True):
            token = int(logits.argmax())
            engine.append(feed.session, token)
            texts[feed.session[1]].append(token)
            held[feed.session[1]] = len(texts[feed.session[1]])
        seconds += time.thread_time() - begin
    return seconds / fleet.verdicts(devices)


async def device(
    number: int,
    token: str,
    fleet: Fleet,
    vocab: int,
    address: tuple[str, int],
    waits: list[float],
    sizes: list[int],
) -> None:
    """Write a text; of each answer `waits` takes the seconds and `sizes` the bytes both ways."""
    reader, writer = await asyncio.open_connection(*address)
    text, held = fleet.prompts[number % TEXTS], 0
    one = np.zeros(1, np.int64)
    for draft, asks in zip(fleet.drafts[number % TEXTS], fleet.asked[number % TEXTS], strict=True):
        if not asks:
            text = np.append(text, draft)
            continue
        rows = Rows(one, one + held, one + len(text) - held, text[held:], one + draft)
        prefix = [(0, held, PrefixDigest(IDENTITY).at(text, held))]
        digest = joint_digest(IDENTITY, prefix) if held else 0
        request = Request(
            "greedy", vocab, rows, client=number,
            identity=b"" if held else IDENTITY, digest=digest,
        )  # fmt: skip
        body = encode_request(request)
        begin = time.perf_counter()
        writer.write(
            b"POST /v1/exchange HTTP/1.1\r\nhost: llm\r\nauthorization: Bearer %s\r\n"
            b"content-length: %d\r\n\r\n%s" % (token.encode(), len(body), body)
        )
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        size = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
        answer = await reader.readexactly(size)
        waits.append(time.perf_counter() - begin)
        sizes.append(len(body) + size)
        if not head.startswith(b"http/1.1 200"):
            raise RuntimeError(answer.decode(errors="replace"))
        text = np.append(text, decode_reply(answer, request).tokens)
        held = len(text)
    writer.close()


def served(settings: Settings, fleet: Fleet, devices: int) -> dict[str, float]:
    """What a server does for so many devices at once, and what of this machine it takes."""
    words = ["--per-address", str(devices + 1), "--queue", str(max(512, 2 * devices))]
    with TemporaryDirectory() as folder:
        known = DeviceTokens(Path(folder) / "devices.json")
        tokens = [known.issue(f"device-{number}") for number in range(devices)]
        words += ["--sessions", str(devices + 64), "--token-file", str(known.file)]
        return measured([*words, *server_words(settings)], tokens, fleet)


class Started(NamedTuple):
    """A server: where it is, its process, and the token ids of its messages."""

    address: tuple[str, int]
    process: psutil.Process
    vocab: int


@contextmanager
def started(words: list[str]) -> Iterator[Started]:
    """A server, which is stopped in the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fedhlm_app", "serve", "llm", "--port", "0", "--batch", *words],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("serving "):
            raise RuntimeError("the server did not start")
        before, _, after = line.rpartition(" (vocabulary ")
        host, _, port = before.split()[-1].rpartition(":")
        vocab = int(after.partition(",")[0])
        yield Started((host, int(port)), psutil.Process(process.pid), vocab)
    finally:
        process.terminate()
        process.wait(60)


def measured(words: list[str], tokens: list[str], fleet: Fleet) -> dict[str, float]:
    """Let all devices write, each a text."""
    with started(words) as (address, own, vocab):
        asyncio.run(device(len(tokens), tokens[0], fleet, vocab, address, [], []))  # warms up
        before, memory = own.cpu_times(), own.memory_info().rss
        waits: list[float] = []
        sizes: list[int] = []

        async def all_devices() -> None:
            asking = [
                device(number, token, fleet, vocab, address, waits, sizes)
                for number, token in enumerate(tokens)
            ]
            await asyncio.gather(*asking)

        begin = time.perf_counter()
        asyncio.run(all_devices())
        wall = time.perf_counter() - begin
        after = own.cpu_times()
        return {
            "verdicts": len(waits),
            "verdicts_per_s": len(waits) / wall,
            "p50_ms": 1e3 * float(np.quantile(waits, 0.5)),
            "p99_ms": 1e3 * float(np.quantile(waits, 0.99)),
            "server_ms": 1e3
            * (after.user + after.system - before.user - before.system)
            / len(waits),
            "message_B": float(np.mean(sizes)),
            "device_kB": (own.memory_info().rss - memory) / len(tokens) / 1e3,
        }


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 16, 64, 256, 1024])
    parser.add_argument("--tokens", type=int, default=48, help="tokens of each device")
    parser.add_argument("--share", type=float, default=0.25, help="of tokens that are asked about")
    add_pair_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    fleet = Fleet(options.tokens, options.share, pair_settings(options))
    figures = {}
    for devices in options.devices:
        settings = pair_settings(options, llm_sessions=devices + 64)
        service = build_service(settings)
        found = served(settings, fleet, devices)
        bare(service.engine, fleet, min(devices, 4))  # warms up
        engine_ms = 1e3 * bare(service.engine, fleet, devices)
        found |= {"engine_ms": engine_ms, "of_bare": engine_ms / found["server_ms"]}
        figures[str(devices)] = found
        print(devices, {name: round(value, 3) for name, value in found.items()}, flush=True)
    print(write_report("fleet", {**vars(options), "by_devices": figures}))


if __name__ == "__main__":
    main()
