"""How long rounds over a trace take with very many clients, and how much memory.

A made-up trace of two texts a client, so no model pair: what a replay costs does not depend on what
is in it. Run as
`python -m benchmarks.replay --clients 100000 --rounds 30`.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import numpy as np

from fedhlm_app.settings import Settings
from fedhlm_app.trace.file import Trace
from fedhlm_app.trace.replaying import Replay

TOKENS = 26


def made_up(items: int, settings: Settings, seed: int = 0) -> Trace:
    """A trace of `items` texts, in which uncertain drafts are wrong more often."""
    generator = np.random.default_rng(seed)
    count = items * TOKENS
    uncertainty = generator.beta(0.6, 1.2, count)
    draft = generator.integers(0, 4096, count)
    wrong = generator.random(count) < uncertainty
    token = np.where(wrong, (draft + 1) % 4096, draft)
    return Trace(
        np.repeat(np.arange(items), TOKENS),
        np.tile(np.arange(1, TOKENS + 1), items),
        draft,
        token,
        token,
        {"closed-form": uncertainty},
        1 - uncertainty,
        -np.round(8 * uncertainty) / 8,
        np.zeros(count, np.uint64),
        generator.integers(0, 4, items),
        {
            "settings": settings.to_run_config(),
            "label-names": ["a", "b", "c", "d"],
            "lead": 1,
        },
    )


def main() -> None:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=30)
    asked = parser.parse_args()
    settings = Settings.from_sources(
        {
            "workload": "score", "learning": "balanced", "clients": asked.clients,
            "rounds": asked.rounds, "held-out-fraction": 0.0, "evaluate-every": 0,
        },
        {},
    )  # fmt: skip
    trace = made_up(3 * asked.clients, settings)
    begin, cpu = time.perf_counter(), time.process_time()
    made = Replay(trace, settings).run()
    # The process that draws texts has ended, and counts as a child.
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    apart = both[1].ru_utime + both[1].ru_stime
    print(
        json.dumps(
            {
                "clients": asked.clients,
                "rounds": asked.rounds,
                "tokens": int(made.stages.sum()),
                "seconds": round(time.perf_counter() - begin, 1),
                "processor_seconds": [round(time.process_time() - cpu, 1), round(apart, 1)],
                "gigabytes": [round(one.ru_maxrss / 2**20, 2) for one in both],
                "threshold": made.rounds[-1]["threshold"]["global"],
            }
        )
    )


if __name__ == "__main__":
    main()
