"""Time of CU-HLM's k* rule at the vocabulary of Qwen2.5, one row on one core.

Run with ``python -m benchmarks.truncation``; writes ``benchmarks/out/truncation.json``.
It has no model pair: distributions are drawn, from sharp to flat.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch

from benchmarks._report import write_report
from hlm.truncation.k_star import k_star_online
from hlm.truncation.truncate import truncate

VOCAB = 152_064
REPEATS = 50
THETAS = (0.3, 0.1, 0.01, 0.001)


def distributions() -> dict[str, torch.Tensor]:
    """Distributions from sharp to flat, as a language model's softmax at different temperatures."""
    normal = np.random.default_rng(0).normal(size=VOCAB)
    named = {}
    for name, scale in (("sharp", 4.0), ("usual", 3.0), ("warm", 2.0), ("flat", 0.5)):
        named[name] = torch.softmax(torch.from_numpy(normal * scale), -1)[None]
    named["zipf"] = torch.from_numpy(1.0 / np.arange(1, VOCAB + 1))[None]
    named["zipf"] /= named["zipf"].sum()
    named["uniform"] = torch.full((1, VOCAB), 1.0 / VOCAB, dtype=torch.float64)
    return named


def measure(probs: torch.Tensor, theta: float) -> dict[str, float]:
    """Milliseconds a row for the rule alone and with the top-k that follows.

    Processor time of this one thread: other work on the machine does not count.
    """
    chance = probs.amax(dim=-1)
    rejection = torch.tensor([0.3], dtype=torch.float64)
    rule, both = [], []
    for _ in range(REPEATS):
        start = time.thread_time()
        counts = k_star_online(probs, chance, rejection, theta)
        chosen = time.thread_time()
        truncate(probs, counts)
        rule.append((chosen - start) * 1e3)
        both.append((time.thread_time() - start) * 1e3)
    return {
        "k_star": int(counts),
        "rule_ms_median": statistics.median(rule),
        "rule_ms_least": min(rule),
        "rule_and_upload_ms_median": statistics.median(both),
    }


def main() -> None:
    """Measure every distribution at every allowed ratio."""
    torch.set_num_threads(1)
    rows = {
        f"{name}, theta {theta}": measure(probs, theta)
        for name, probs in distributions().items()
        for theta in THETAS
    }
    slowest = max(row["rule_ms_median"] for row in rows.values())
    for name, row in rows.items():
        print(f"{name:22s} k* {row['k_star']:7d}  {row['rule_ms_median']:7.2f} ms")
    path = write_report(
        "truncation",
        {"vocab": VOCAB, "repeats": REPEATS, "rows": rows, "slowest_rule_ms_median": slowest},
    )
    print(path)


if __name__ == "__main__":
    main()
