"""How long devices wait for the LLM while one floods it, against how long they wait usually.

``python -m benchmarks.flood`` writes ``benchmarks/out/flood.json``. The server is a process with
the LLM at a pace of `PACE_MS` a pass, as one larger than the built-in has, tokens by device and
``--batch``; `DEVICES` honest devices ask it, each for one token of a text after another, with a
pause between. The flood is a process of its own: one device with many connections, which asks
without a pause, under as many client numbers, in one of the ways of `FLOODS`, at the lowest
priority, since its own processor time is nobody's wait. ``refused`` sends what is no message, and
every other connection has a wrong token. Turns with and without it alternate, so
that both see the same machine.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._pair import add_pair_options, pair_settings, server_words
from benchmarks._report import write_report
from benchmarks.fleet import Started, started
from benchmarks.long_message import message
from fedhlm_app.settings import Settings

DEVICES, PAUSE, CONNECTIONS, PACE_MS = 4, 0.05, 32, 100
FLOODS = {"short": (1, 8), "texts": (64, 4), "long": (16, 120), "refused": (0, 0)}
"""Texts of a message and tokens of each: one question; many new texts; as much as there may be;
none at all, so that it is no message (see `refused`)."""


def flood(address: str, token: str, vocab: int, texts: int, length: int) -> None:
    """Ask over many connections until this process is ended."""
    from fedhlm_app.transport.http_transport import HttpTransport
    from hlm.transport import LinkDown

    os.nice(19)
    if not texts:
        for number in range(CONNECTIONS):
            word = "wrong" if number % 2 else token
            threading.Thread(target=refused, args=(address, word), daemon=True).start()
        threading.Event().wait()

    def ask(number: int) -> None:
        link = HttpTransport(address, timeout=60, token=token)
        payload = message(texts, length, vocab, client=100 + number)
        while True:
            with suppress(LinkDown):
                link.exchange(payload)

    for number in range(CONNECTIONS):
        threading.Thread(target=ask, args=(number,), daemon=True).start()
    threading.Event().wait()


def refused(address: str, token: str) -> None:
    """Send what is no message over one connection, or one after another if they are closed."""
    from fedhlm_app.transport.http_transport import EXCHANGE

    while True:
        link = HTTPConnection(address, timeout=60)
        with suppress(OSError, HTTPException):
            while True:
                link.request("POST", EXCHANGE, b"x" * 64, {"authorization": f"Bearer {token}"})
                link.getresponse().read()
        link.close()


def asked(address: str, token: str, vocab: int, client: int, until: float) -> list[float]:
    """Seconds of each answer to one device, which asks until then."""
    from fedhlm_app.transport.http_transport import HttpTransport

    link, waits = HttpTransport(address, timeout=60, token=token), []
    payload = message(1, 16, vocab, client)
    while time.monotonic() < until:
        begun = time.perf_counter()
        link.exchange(payload)
        waits.append(time.perf_counter() - begun)
        time.sleep(PAUSE)
    link.close()
    return waits


def turn(
    server: Started, tokens: list[str], seconds: float, kind: str
) -> tuple[list[float], float, int]:
    """One turn, with a flood or without (``usual``): what all devices waited, seconds of processor
    that the server took meanwhile, and requests that it refused.
    """
    from concurrent.futures import ThreadPoolExecutor

    from fedhlm_app.transport.http_transport import HttpTransport

    process, address, vocab = None, ":".join(map(str, server.address)), server.vocab
    if kind != "usual":
        process = multiprocessing.Process(
            target=flood, args=(address, tokens[0], vocab, *FLOODS[kind])
        )
        process.start()
        time.sleep(8)  # until it has imported and asks

    def refusals() -> int:
        answers = HttpTransport(address, timeout=60, token=tokens[1]).stats()["answers"]
        return sum(count for status, count in answers.items() if status.startswith("4"))

    try:
        before, refused, until = server.process.cpu_times(), refusals(), time.monotonic() + seconds
        with ThreadPoolExecutor(DEVICES) as pool:
            waits = pool.map(
                lambda number: asked(address, tokens[number], vocab, number, until),
                range(1, DEVICES + 1),
            )
            found = [wait for one in waits for wait in one]
        after = server.process.cpu_times()
        spent = after.user + after.system - before.user - before.system
        return found, spent, refusals() - refused
    finally:
        if process is not None:
            process.kill()
            process.join()


def measure(
    seconds: float, turns: int, floods: Sequence[str], settings: Settings
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Milliseconds of devices' waits, the server's cores in use and requests that it refused, usual
    and beside each flood; all answers by status.
    """
    from fedhlm_app.transport.http_transport import HttpTransport
    from servers.access import DeviceTokens

    with tempfile.TemporaryDirectory() as folder:
        known = DeviceTokens(Path(folder) / "devices.json")
        tokens = [known.issue(f"device-{number}") for number in range(DEVICES + 1)]
        words = ["--token-file", str(known.file), "--pace-ms", str(PACE_MS)]
        waits: dict[str, list[float]] = {kind: [] for kind in ("usual", *floods)}
        spent, refused = dict.fromkeys(waits, 0.0), Counter[str]()
        with started([*words, *server_words(settings)]) as server:
            for _ in range(turns):
                for kind, found in waits.items():
                    more, took, times = turn(server, tokens, seconds, kind)
                    found += more
                    spent[kind] += took
                    refused[kind] += times
            link = HttpTransport(":".join(map(str, server.address)), timeout=60, token=tokens[1])
            answers = link.stats()["answers"]
    rows = []
    for kind, found in waits.items():
        p50, p99 = np.percentile(found, [50, 99]) * 1000
        row = {"flood": kind, "answers": len(found), "p50_ms": p50, "p99_ms": p99}
        row["server_cores"] = spent[kind] / (turns * seconds)
        rows.append(row | {"refused_a_second": refused[kind] / (turns * seconds)})
    for row in rows:
        row["p99_over_usual"] = row["p99_ms"] / rows[0]["p99_ms"]
    return rows, answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="of each turn")
    parser.add_argument("--turns", type=int, default=3, help="of each kind")
    parser.add_argument("--floods", nargs="+", choices=FLOODS, default=list(FLOODS))
    add_pair_options(parser, idle="slm")
    options = parser.parse_args()
    rows, answers = measure(options.seconds, options.turns, options.floods, pair_settings(options))
    for row in rows:
        print({key: round(float(v), 2) if isinstance(v, float) else v for key, v in row.items()})
    print("answers by status:", answers)
    figures = {
        "options": vars(options),
        "devices": DEVICES,
        "connections": CONNECTIONS,
        "rows": rows,
        "answers": answers,
    }
    write_report("flood", figures)


if __name__ == "__main__":
    main()
