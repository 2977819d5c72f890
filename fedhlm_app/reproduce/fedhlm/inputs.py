"""What FedHLM's pieces are made from: runs, live or replayed, each made once and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fedhlm_app.data.items import load_items
from fedhlm_app.hosting.llm import build_service
from fedhlm_app.reproduce.fedhlm.live import live
from fedhlm_app.reproduce.pieces import Measured, Options, Tell
from fedhlm_app.results.runs import write_atomically
from fedhlm_app.settings import Settings
from fedhlm_app.trace.file import Trace
from fedhlm_app.trace.recording import record
from fedhlm_app.trace.replaying import Replay
from servers.llm import LanguageModelService

CLIENTS, CLUSTERS, ROUNDS, TOKENS = 20, 4, 30, 30
"""Section VI-A: 18,000 tokens."""
QUICK_ROUNDS = 6
"""Of live runs; replayed ones take a second whatever their length."""
ITEMS, QUICK_ITEMS = 6000, 1000
"""Texts of a larger dataset, drawn once: a run routes 1,800."""
TIERS: Mapping[str, Any] = {
    "cache-mode": "context",
    "peer-mode": "context",
    "inter-cluster": True,
    "average-at": "cloud",
    "opportunistic": False,  # Algorithm 1 always asks peers
}
"""FedHLM's caches, peers and neighbours, keyed by context."""

Run = dict[str, Any]
"""``rounds``, lines as in `metrics.jsonl`, and ``clients``, lists by client."""


@dataclass(frozen=True)
class Inputs:
    """Runs of the paper's size.

    Attributes
    ----------
    options : Options
    folder : Path
        Keeps traces and runs.
    tell : callable
    """

    options: Options
    folder: Path
    tell: Tell
    _traces: dict[str, Trace] = field(default_factory=dict)

    @property
    def seeds(self) -> range:
        """Of everything random."""
        return range(self.options.seeds)

    @cached_property
    def dataset(self) -> str:
        """The data, or a file of so many of its texts."""
        items = load_items(self.options.data)
        most = QUICK_ITEMS if self.options.quick else ITEMS
        if len(items) <= most:
            return self.options.data
        path = self.folder / "texts.parquet"
        if not path.is_file():
            rows = np.sort(np.random.default_rng(0).permutation(len(items))[:most])
            names = [items.label_names[label] for label in items.labels(rows)]
            partial = path.with_name(".texts.partial")
            pq.write_table(pa.table({"text": items.texts(rows), "label": names}), partial)
            partial.replace(path)
        return str(path.resolve())

    def settings(self, seed: int = 0, **changes: Any) -> Settings:
        """Settings of a run, by snake_case key."""
        given = {
            "dataset": self.dataset, "workload": "score", "clients": CLIENTS, "clusters": CLUSTERS,
            "rounds": ROUNDS, "tokens-per-round": TOKENS, "evaluate-every": 0, "seed": seed,
            "partition": "dirichlet", "dirichlet-alpha": 1.0, "learning": "balanced",
            **self.options.settings,
            **{name.replace("_", "-"): value for name, value in changes.items()},
        }  # fmt: skip
        return Settings.from_sources(given, {})

    def trace(self, workload: str = "score") -> Trace:
        """All tokens, as both models read them."""
        if workload not in self._traces:
            path = self.folder / f"trace-{workload}.parquet"
            if not path.is_file():
                record(
                    self.settings(workload=workload),
                    lambda done, of: self._say(f"reading texts for {workload}", done, of, 200),
                ).save(path)
            self._traces[workload] = Trace.load(path)
        return self._traces[workload]

    def run(self, seed: int = 0, **changes: Any) -> Run:
        """A run, replayed unless its tiers want it live."""
        tiers = any(changes.get(name, "off") != "off" for name in ("cache_mode", "peer_mode"))
        if tiers and self.options.quick:
            changes = {"rounds": QUICK_ROUNDS, **changes}
        settings = self.settings(seed, **changes)
        told = json.dumps(settings.to_run_config(), sort_keys=True)
        path = self.folder / "runs" / f"{hashlib.sha256(told.encode()).hexdigest()[:16]}.json"
        if path.is_file():
            found: Run = json.loads(path.read_text("utf-8"))
            return found
        if tiers:
            made = live(
                settings,
                self._service,
                lambda done: self._say("live run, round", done, settings.rounds, 5),
            )
        else:
            replayed = Replay(self.trace(settings.workload), settings).run()
            made = {
                "rounds": replayed.rounds,
                "clients": {
                    name: getattr(replayed, name).tolist()
                    for name in ("stages", "correct", "answered")
                },
            }
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, json.dumps(made) + "\n")
        return made

    def fedhlm(self, seed: int = 0, **changes: Any) -> Run:
        """FedHLM with all its tiers."""
        tiers = {name.replace("-", "_"): value for name, value in TIERS.items()}
        return self.run(seed, **{**tiers, **changes})

    def measured(self, value: Callable[[int], float]) -> Measured:
        """A figure over all seeds."""
        return Measured.of([value(seed) for seed in self.seeds])

    @cached_property
    def _service(self) -> LanguageModelService:
        return build_service(self.settings())

    def _say(self, what: str, done: int, of: int, every: int) -> None:
        if done % every == 0 or done == of:
            self.tell(f"  {what} {done} of {of}")


def setup(options: Options) -> str:
    """What all runs have in common."""
    total = CLIENTS * ROUNDS * TOKENS
    shorter = f" ({QUICK_ROUNDS} rounds where caches and peers run live)" if options.quick else ""
    pair = options.settings.get("slm", "builtin")
    return (
        f"{CLIENTS} clients in {CLUSTERS} clusters, {ROUNDS} rounds{shorter}, {total:,} tokens a "
        f"run, {options.seeds} seeds; {options.counted}, pair {pair}; next tokens of given "
        "texts, greedy decoding, Dirichlet alpha 1 unless said otherwise"
    )


def opened(options: Options, folder: Path, tell: Tell) -> Inputs:
    """Get ready."""
    return Inputs(options, folder, tell)
