"""Hierarchical aggregation of 10^3, 10^5 and 10^6 replies: time and memory of the array core.

``python -m benchmarks.aggregation`` writes ``benchmarks/out/aggregation.json``. Measured is one
round after validation: edge rule inside 100 clusters (eq. 7), cloud rule over them (eq. 8). What
Flower's messages cost, decoding and checking every reply, is measured apart, per reply. It has no
model pair: numbers are averaged, whoever made them.
"""

from __future__ import annotations

import resource
import time
import tracemalloc
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from benchmarks._report import write_report
from strategies.layout import Layout
from strategies.tiers import TierRules, Tiers
from strategies.validation import ReplySchema, validate_replies

CLUSTERS = 100
REPEATS = 5
CASES = [
    ("weighted-mean", 10**3, 1),
    ("weighted-mean", 10**5, 1),
    ("weighted-mean", 10**6, 1),
    ("weighted-mean", 10**5, 64),
    ("trimmed-mean", 10**6, 1),
    ("median", 10**6, 1),
]


def one_round(rule: str, replies: int, size: int) -> dict[str, Any]:
    """Median seconds of a round, and the peak of what it allocates beyond its input."""
    generator = np.random.default_rng(0)
    values = generator.random((replies, size))
    weights = generator.integers(0, 50, replies).astype(np.float64)
    clusters = generator.integers(0, CLUSTERS, replies)
    starts = np.full((CLUSTERS, size), 0.5)

    def aggregate() -> np.ndarray:
        tiers = Tiers(starts[0], CLUSTERS, TierRules(rule), np.zeros(size), np.ones(size))
        tiers.cloud_step(*tiers.edge_step(values, weights, clusters, starts))
        return tiers.policy

    seconds = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        aggregate()
        seconds.append(time.perf_counter() - begun)
    tracemalloc.start()
    aggregate()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "rule": rule,
        "replies": replies,
        "parameters": size,
        "seconds": float(np.median(seconds)),
        "peak_bytes": peak,
        "input_bytes": values.nbytes + weights.nbytes + clusters.nbytes,
    }


def check_replies(count: int) -> dict[str, Any]:
    """Time to decode and check `count` Flower replies of one threshold each."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    replies = []
    for node in range(count):
        metrics = MetricRecord({"num-examples": 30, "client": node, "round": 1})
        arrays = ArrayRecord({"policy": Array(np.array([0.5]))})
        asked = Message(RecordDict(), dst_node_id=node + 1, message_type="train")
        replies.append(Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=asked))
    schema = ReplySchema(
        Layout(("policy",), ((1,),), ("<f8",)),
        np.zeros(1),
        np.ones(1),
        1,
        {node + 1: node for node in range(count)},
    )
    begun = time.perf_counter()
    updates, _ = validate_replies(replies, schema)
    seconds = time.perf_counter() - begun
    if len(updates) != count:
        raise RuntimeError(f"{count - len(updates)} well-formed replies were refused")
    return {"replies": count, "seconds": seconds, "microseconds_per_reply": seconds / count * 1e6}


def main() -> None:
    rounds = []
    for case in CASES:
        figures = one_round(*case)
        rounds.append(figures)
        print(
            f"{figures['rule']:>13} {figures['replies']:>9,} replies x {figures['parameters']:>2}: "
            f"{figures['seconds']:.4f} s, peak {figures['peak_bytes'] / 2**20:.1f} MiB "
            f"over an input of {figures['input_bytes'] / 2**20:.1f} MiB"
        )
    checked = check_replies(10**4)
    print(f"decode and check a reply: {checked['microseconds_per_reply']:.1f} us")
    path = write_report(
        "aggregation",
        {
            "clusters": CLUSTERS,
            "rounds": rounds,
            "validation": checked,
            "process_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        },
    )
    print(path)


if __name__ == "__main__":
    main()
