"""One golden run in this process, and what is remembered of it."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clients.records import TokenRecords
from fedhlm_app.client.device import Device
from fedhlm_app.compare import DEFAULT_METHODS, Comparison, Plan, chosen_methods
from fedhlm_app.compare.contender import Contender
from fedhlm_app.settings import Settings
from tests.fedhlm_app.in_process import Runner
from tests.golden.cases import RUNS

Golden = dict[str, Any]


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums of floats come out alike whatever the machine's number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass
class Digest:
    """A fingerprint of texts: which token stands where, and who decided it."""

    hash: Any = field(default_factory=hashlib.sha256)
    uncertainty: float = 0.0

    def add(self, records: TokenRecords) -> None:
        """Take in the tokens of some texts, in order."""
        present = records.present
        for values, dtype in (
            (records.position, "<i8"),
            (records.draft, "<i8"),
            (records.token, "<i8"),
            (records.stage, "|i1"),
            (records.choice, "|i1"),
        ):
            self.hash.update(np.ascontiguousarray(values[present], dtype=dtype).tobytes())
        # The LLM alone measures none.
        self.uncertainty += float(np.nansum(records.uncertainty[present]))

    def result(self) -> Golden:
        """What is written down."""
        return {"digest": self.hash.hexdigest()[:16], "uncertainty": self.uncertainty}


def federated(name: str, folder: Path) -> Golden:
    """One of `cases.RUNS`, from settings to summary.

    Parameters
    ----------
    name : str
        Its key.
    folder : Path
        For the run's folder.
    """
    digest = Digest()
    with pytest.MonkeyPatch.context() as patch, one_thread():
        route = Device._route

        def watched(self: Device, *args: Any, **options: Any) -> Any:
            routed = route(self, *args, **options)
            digest.add(routed.records[-1])
            return routed

        patch.setattr(Device, "_route", watched)
        federation, run, _ = Runner(patch).run(folder, **RUNS[name])
        summary = run.summary()
    assert summary is not None
    policy = np.asarray(federation.strategy.policy, np.float64)
    rounds = [
        {
            "threshold": line["threshold"]["global"],
            "bytes": line["bytes"],
            "llm_agreement": line["llm_agreement"],
            "certificate": line["certificate"],
            "weights": sum(line["weights"].values()),
            "read": line["read"],
        }
        for line in run.metrics()
    ]
    return {
        "threshold": summary["threshold"],
        "policy": {"size": policy.size, "norm": float(np.linalg.norm(policy))},
        "resolution": summary["resolution"],
        "tokens": summary["tokens"],
        "bytes": summary["bytes"],
        "audited": summary["audited"],
        "evaluation": summary["evaluation"].get("resolution", {}),
        "accuracy": summary["accuracy"],
        "rounds": rounds,
        "texts": digest.result(),
    }


class _Watched:
    """A method of the comparison whose texts are noted."""

    def __init__(self, contender: Contender) -> None:
        self._contender, self.digest = contender, Digest()
        self.method, self.tally = contender.method, contender.tally

    def make(self, work: Any, counted: bool = True) -> TokenRecords:
        records = self._contender.make(work, counted)
        self.digest.add(records)
        return records

    def answer(self, workload: str, work: Any) -> None:
        self._contender.answer(workload, work)


class _WatchedComparison(Comparison):
    def _contender(self, method: Any) -> Any:
        return _Watched(super()._contender(method))

    def _result(self, contender: Any, *links: Any) -> dict[str, Any]:
        return {**super()._result(contender, *links), "texts": contender.digest.result()}


def compared(decoding: str) -> Golden:
    """All methods of `fedhlm compare` in one decoding; by method."""
    ticks = itertools.count()
    plan = Plan(
        chosen_methods(DEFAULT_METHODS),
        prompts=2,
        calibration_prompts=6,
        tokens=5,
        # Ticks at every look: figures then do not depend on the machine's speed.
        clock=lambda: float(next(ticks)),
    )
    with one_thread():
        results = _WatchedComparison.of(
            Settings.from_sources({"decoding": decoding}, {}), plan
        ).run()
    kept = (
        "tokens", "sent_to_llm", "llm_agreement", "certificate", "accuracy", "bytes_per_token",
        "payload_bytes_per_sent_token", "messages", "texts",
    )  # fmt: skip
    return {one["method"]: {key: one[key] for key in kept} for one in results}
