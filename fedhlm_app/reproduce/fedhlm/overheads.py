"""What uncertainty, consensus and updates cost: seconds and memory of live runs (section V-B)."""

from __future__ import annotations

import numpy as np
import torch
from torch.autograd.profiler_legacy import profile

from fedhlm_app.models.vocabulary import vocabulary_size
from fedhlm_app.reproduce.fedhlm.inputs import CLIENTS, Inputs
from fedhlm_app.reproduce.pieces import Cell, Finding, Measured, Piece, Table
from hlm.uncertainty import closed_form


def overheads(inputs: Inputs) -> Finding:
    """Seconds and bytes of a live run, by what they were spent on."""
    runs = [inputs.fedhlm(seed) for seed in inputs.seeds]
    tokens = [sum(line["tokens"] for line in run["rounds"]) for run in runs]
    kinds = {
        "small model, uncertainty and policy": "slm",
        "waiting for edge and LLM, in process": "waited",
        "local gradient steps": "learning",
        "aggregation in both tiers (eq. 7-8)": "aggregation",
    }
    rows: list[tuple[Cell, ...]] = []
    for name, key in kinds.items():
        spent = [sum(line["seconds"][key] for line in run["rounds"]) for run in runs]
        each = [1e6 * used / count for used, count in zip(spent, tokens, strict=True)]
        rows.append((name, Measured.of(spent), Measured.of(each), None))

    def held(name: str) -> Measured:
        return Measured.of([run["memory"][name] for run in runs])

    vocab = vocabulary_size(inputs.settings().slm)
    rows += [
        ("uncertainty of a token, allocated", None, None, _of_uncertainty(vocab or 0)),
        ("consensus: a device's cache and contexts", None, None, held("device")),
        ("consensus: an edge server's entries", None, None, held("edge")),
        (f"updates: the server's policies of {CLIENTS} clients", None, None, held("server")),
    ]
    words = (
        "Learning and averaging a threshold cost next to nothing beside the models' passes, as "
        "section V-B says of their complexity. Times are of one machine, whatever else it did. "
        "Memory is what is held after the last round, and of uncertainty all that is allocated on "
        f"the way from {vocab:,} logits to one number, most of it given back at once."
    )
    columns = ("what", "seconds a run", "microseconds a token", "bytes")
    return Finding(words, Table(columns, rows))


def _of_uncertainty(vocab: int) -> int:
    """Bytes that are allocated for the uncertainty of one draft."""
    logits = torch.from_numpy(np.random.default_rng(0).standard_normal((1, vocab), np.float32))
    draft = logits.argmax(dim=1)
    # The newer one writes to standard error.
    with profile(profile_memory=True) as seen:  # type: ignore[no-untyped-call]
        closed_form(logits, draft)
    return sum(max(0, event.self_cpu_memory_usage) for event in seen.function_events)


OVERHEADS = Piece("overheads", "Overheads (section V-B)", overheads)
