"""What one message costs the LLM server, by its length: memory, processor time, others' wait.

``python -m benchmarks.long_message`` writes ``benchmarks/out/long_message.json``. A message begins
so many texts of the longest context and wants a byte about every token, which is the most a message
can ask for. Each length has a process of its own. `peak_mib` is the growth of its peak resident
memory over a message that fills the sessions once; `turns_before_a_short_one` counts the passes
that another device waits for, whose short question comes when the long message is already in work.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from benchmarks._memory import apart, peak_mib
from benchmarks._pair import add_pair_options, pair_settings
from benchmarks._report import write_report

SESSIONS = 8
"""Key-value memory is no part of what a message costs: it is there from the first one on."""


def message(texts: int, length: int, vocab: int, client: int = 0) -> bytes:
    """A request that begins so many texts."""
    from hlm.wire import IDENTITY_BYTES, Request, Rows, encode_request

    random = np.random.default_rng(client)
    nothing, tokens = np.zeros(texts, np.int64), random.integers(1, vocab, texts * length)
    rows = Rows(np.arange(texts), nothing, nothing + length, tokens, nothing + 7)
    request = Request(
        "greedy", vocab, rows, client=client, feedback=True, identity=bytes(IDENTITY_BYTES)
    )
    return encode_request(request)


def measure(options: argparse.Namespace, texts: int) -> dict[str, Any]:
    """Read one message in this process."""
    import torch

    from fedhlm_app.hosting.llm import build_service
    from servers.schedule import Schedule

    torch.set_num_threads(1)
    service = build_service(pair_settings(options, llm_sessions=SESSIONS))
    engine = service.engine
    length = engine.max_context - 1
    service.handle(message(SESSIONS, length, engine.vocab))
    base, begun = peak_mib(), time.process_time()
    payload = message(texts, length, engine.vocab)
    schedule = Schedule(service)
    schedule.add(service.begin(payload))
    passes = engine.stats.passes
    schedule.turn()
    short = schedule.add(service.begin(message(1, 8, engine.vocab, client=1)))
    waited = 0
    while schedule.busy:
        waited += not short.finished
        schedule.turn()
    return {
        "texts": texts,
        "message_bytes": len(payload),
        "peak_mib": round(peak_mib() - base, 1),
        "processor_s": round(time.process_time() - begun, 2),
        "passes": engine.stats.passes - passes,
        "turns_before_a_short_one": waited,
    }


def main() -> None:
    """Measure all lengths and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, nargs="+", default=[4, 16, 64, 256])
    add_pair_options(parser, idle="slm")
    options = parser.parse_args()
    found = []
    for texts in options.texts:
        found.append(apart(measure, options, texts))
        print(found[-1], flush=True)
    write_report("long_message", {**vars(options), "messages": found})


if __name__ == "__main__":
    main()
