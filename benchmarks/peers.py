"""What peers resolve, how often they are wrong, and what asking them costs, in three worlds.

Run ``python -m benchmarks.peers``; ``--rounds 6 --worlds shared`` for a quick look. Figures go to
``benchmarks/out/peers.json``. The worlds are described in `benchmarks._peers_world`.

Every routed place is also read by the LLM outside the method, so that hits are judged exactly: a
false hit is a token of a cache, peer or edge stage that is not the LLM's own greedy choice there,
and beside it stands how often the device's draft in the same places would have been wrong.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.optimize import curve_fit

from benchmarks._pair import add_pair_options, embeddings_of, load_models, pair_settings
from benchmarks._peers_world import Prompts, World
from benchmarks._report import write_report
from clients.decoding.drafting import RouterConfig
from clients.decoding.routing import Router
from clients.decoding.slm import read_texts
from clients.policy import ThresholdPolicy
from clients.records import Stage, TextBatch, TokenRecords, Traffic
from clients.resolvers.cache import CacheConfig, CacheResolver, TokenCache
from clients.resolvers.chain import Asked, Escalation, Resolution, Resolver
from clients.resolvers.edge import EdgeResolver
from clients.resolvers.edge_exchange import EdgeResolverConfig
from clients.resolvers.messages import UplinkConfig
from clients.resolvers.opportunistic import BYTES, OpportunisticConfig, OpportunisticRule, Price
from clients.resolvers.uplink import LanguageModelUplink
from fedhlm_app.models.load import ModelPair
from fedhlm_app.transport.transports import DirectTransport
from hlm.peers.agreement import SketchMaker
from hlm.sampling import Sampling
from hlm.uncertainty import closed_form
from hlm.verification import VERIFIERS
from servers.edge.config import EdgeConfig
from servers.edge.server import EdgeServer
from servers.engine.engine import Engine
from servers.llm import LanguageModelService

HITS = (Stage.CACHE, Stage.PEER, Stage.EDGE)
MILLISECONDS = (
    # An edge server in the next room, and the LLM over a poor cell (the slowest link of the
    # project's benchmarks).
    Price(per_message=5.0, per_byte=8_000 / 100e6),
    Price(per_message=60.0, per_byte=8_000 / 1e6),
)


@dataclass(frozen=True)
class Setup:
    """One run; the defaults are the paper's numbers of clients, clusters and rounds."""

    world: World
    peer_mode: str = "context"
    cache_size: int = 0
    unit: str | None = None
    verifier: str = "greedy"
    clients: int = 20
    clusters: int = 4
    rounds: int = 30
    prompts: int = 3
    tokens: int = 10
    threshold: float = 0.5
    audit_rate: float = 0.05
    inter_cluster: bool = False
    seed: int = 0


@dataclass
class Tally:
    """Counts of a run, by round where that is interesting."""

    stages: dict[str, int] = field(default_factory=dict)
    hits: int = 0
    wrong: int = 0
    wrong_locally: int = 0
    traffic: Traffic = field(default_factory=Traffic)
    rounds: list[dict[str, float]] = field(default_factory=list)

    def add(self, records: TokenRecords, top: np.ndarray[Any, Any]) -> None:
        """Count one client's round; `top` int64 [rows, steps] are the LLM's own tokens."""
        for stage, count in records.stage_counts().items():
            self.stages[stage] = self.stages.get(stage, 0) + count
        hit = records.present & np.isin(records.stage, HITS)
        self.hits += int(hit.sum())
        self.wrong += int((records.token != top)[hit].sum())
        self.wrong_locally += int((records.draft != top)[hit].sum())


class Recorder:
    """Last but one in a chain: writes down what the LLM decided, decides nothing."""

    needs_hidden, verifies = True, False

    def __init__(self) -> None:
        self.steps: list[tuple[Any, Any, Any]] = []

    def resolve(self, escalation: Escalation) -> Resolution[None]:
        """Nothing."""
        return Resolution.none(len(escalation.rows))

    def learn(
        self, escalation: Escalation, final: Resolution[Any], asked: Asked[None] | None
    ) -> Traffic:
        """Contexts, drafts and verified tokens of one step."""
        if escalation.hidden is not None:
            hidden = escalation.hidden.numpy(force=True)
            self.steps.append((hidden, escalation.draft.tokens.numpy(force=True), final.tokens))
        return Traffic()

    def hits(self, cache: TokenCache) -> tuple[int, int]:
        """Hits and lookups of a cache that is asked and taught step by step."""
        hits = lookups = 0
        for hidden, drafts, tokens in self.steps:
            hits += int((cache.look_up(hidden, drafts) >= 0).sum())
            lookups += len(drafts)
            cache.add(hidden, tokens)
        return hits, lookups


class Federation:
    """All clients of a run, their edge servers and the LLM, in this process."""

    def __init__(self, setup: Setup, pair: ModelPair) -> None:
        self.setup = setup
        self.slm, self.llm, tokenizer = pair
        self.prompts = Prompts(
            setup.world, tokenizer, setup.clients, setup.clusters, seed=setup.seed
        )
        self.vocab = int(self.slm.config.get_text_config().vocab_size)
        self.embeddings = embeddings_of(self.slm)
        self.service = LanguageModelService(Engine(self.llm, max_sessions=256, max_context=64))
        members = [range(c, setup.clients, setup.clusters) for c in range(setup.clusters)]
        config = EdgeConfig(
            mode="paper" if setup.peer_mode == "paper" else "context", deferred=True
        )
        self.edges = [
            EdgeServer(cluster, self.embeddings, config, ids) for cluster, ids in enumerate(members)
        ]
        if setup.inter_cluster:
            for edge in self.edges:
                edge.neighbours = [
                    DirectTransport(other) for other in self.edges if other is not edge
                ]
        # Eq. 14 needs what came to a cache; the paper-mode run has no other memory of contexts.
        self.recording = setup.world == "shared" and setup.peer_mode == "paper"
        self.chains = [self._chain(client) for client in range(setup.clients)]

    def _chain(self, client: int) -> list[Resolver[Any]]:
        setup = self.setup
        chain: list[Resolver[Any]] = []
        if setup.cache_size:
            cache = TokenCache(self.embeddings, CacheConfig(capacity=setup.cache_size))
            chain.append(
                CacheResolver(cache, setup.audit_rate, before_peers=setup.peer_mode != "off")
            )
        if setup.peer_mode != "off":
            rule = None
            if setup.unit is not None:
                edge, llm = MILLISECONDS if setup.unit == "ms" else (BYTES, BYTES)
                rule = OpportunisticRule(OpportunisticConfig(edge=edge, llm=llm))
            link = EdgeResolverConfig(client, self.vocab, setup.clients // setup.clusters)
            transport = DirectTransport(self.edges[client % setup.clusters])
            by_step = setup.peer_mode == "paper"
            sketches = None if by_step else SketchMaker(self.embeddings.shape[1])
            chain.append(EdgeResolver(transport, link, sketches, rule, setup.audit_rate))
        if self.recording:
            chain.append(Recorder())
        uplink = UplinkConfig(client=client, vocab=self.vocab, sampling=Sampling())
        verifier = VERIFIERS[setup.verifier]()
        chain.append(LanguageModelUplink(DirectTransport(self.service), verifier, uplink))
        return chain

    def run(self) -> Tally:
        """All rounds; clients one after the other, entries visible from the next round on."""
        setup, tally = self.setup, Tally()
        uncertainty = partial(_closed_form)
        for round_index in range(setup.rounds):
            traffic = Traffic()
            before = dict(tally.stages), tally.hits
            for client, chain in enumerate(self.chains):
                config = RouterConfig(Sampling(), uncertainty, setup.seed, client)
                verifier = VERIFIERS[setup.verifier]()
                router = Router(self.slm, config, ThresholdPolicy(setup.threshold), verifier, chain)
                sessions = np.arange(setup.prompts) + round_index * setup.prompts
                prompts = list(self.prompts.of(client, round_index, setup.prompts))
                texts = TextBatch(prompts, sessions, setup.tokens)
                records = router.generate(texts, setup.tokens, traffic)
                for resolver in chain:
                    if isinstance(resolver, EdgeResolver):
                        traffic.include(resolver.flush())
                tally.add(records, self._llm_choices(texts, records))
            for edge in self.edges:
                edge.publish()
            tally.traffic += traffic
            count = sum(tally.stages.values()) - sum(before[0].values())
            everything = traffic.edge + traffic.uplink + traffic.downlink
            tally.rounds.append(
                {
                    "hit_share": (tally.hits - before[1]) / count,
                    "edge_share_of_bytes": traffic.edge / everything if everything else 0.0,
                }
            )
        return tally

    def _llm_choices(self, texts: TextBatch, records: TokenRecords) -> np.ndarray[Any, Any]:
        """The LLM's own greedy token for every routed place, int64 [rows, steps]."""
        top = np.full(records.token.shape, -1, np.int64)
        whole = [texts.text(row) for row in range(len(texts.lengths))]
        for row, step in enumerate(read_texts(self.llm, whole)):
            present = records.present[row]
            at = torch.from_numpy(records.position[row][present] - 1)
            top[row, present] = step.logits[at].argmax(dim=1).numpy(force=True)
        return top


def _closed_form(logits: torch.Tensor, drafts: torch.Tensor, keys: Any) -> torch.Tensor:
    return closed_form(logits, drafts, 1.0)


def measure(federation: Federation) -> dict[str, Any]:
    """Run it; its figures."""
    begin = time.perf_counter()
    setup = federation.setup
    tally = federation.run()
    tokens = sum(tally.stages.values())
    traffic = tally.traffic
    audits = [
        resolver.tier.false_hits
        for chain in federation.chains
        for resolver in chain
        if isinstance(resolver, CacheResolver | EdgeResolver)
    ]
    everything = traffic.uplink + traffic.downlink + traffic.edge
    figures: dict[str, Any] = {
        "setup": vars(setup),
        "texts": federation.prompts.name,
        "tokens": tokens,
        "stages": tally.stages,
        "hit_share": tally.hits / tokens,
        "false_hit_rate": tally.wrong / tally.hits if tally.hits else None,
        "kept_locally_wrong_rate": tally.wrong_locally / tally.hits if tally.hits else None,
        "audits": {
            "checked": sum(a.checked for a in audits),
            "wrong": sum(a.wrong for a in audits),
        },
        "bytes": {"uplink": traffic.uplink, "downlink": traffic.downlink, "edge": traffic.edge},
        "edge_share_of_bytes": traffic.edge / everything if everything else 0.0,
        "rounds": tally.rounds,
        "edge": [vars(edge.stats) for edge in federation.edges],
        "seconds": time.perf_counter() - begin,
    }
    return figures


def setups(worlds: Sequence[World], size: Setup) -> list[Setup]:
    """The runs of the report in the size of one of them, those that answer most first."""
    plain = {world: replace(size, world=world) for world in worlds}
    runs = [replace(plain[world], unit="ms") for world in worlds]
    if "shared" in plain:
        shared = plain["shared"]
        runs += [
            shared,
            replace(shared, peer_mode="paper"),
            replace(shared, peer_mode="off", cache_size=1024),
            replace(shared, unit="ms", inter_cluster=True),
            replace(shared, unit="ms", cache_size=1024),
        ]
    runs += [replace(plain[world], unit="bytes") for world in worlds if world != "shared"]
    if "apart" in plain:
        runs += [replace(plain["apart"], unit="ms", inter_cluster=True), plain["apart"]]
    return runs


def hit_ratios(federation: Federation, sizes: Sequence[int]) -> dict[str, Any]:
    """Hit ratios of device caches by size over what a run without caches recorded, and eq. 14."""
    ratios = []
    for size in sizes:
        counts = [
            resolver.hits(TokenCache(federation.embeddings, CacheConfig(capacity=size)))
            for chain in federation.chains
            for resolver in chain
            if isinstance(resolver, Recorder)
        ]
        hits, lookups = np.sum(counts, axis=0)
        ratios.append(float(hits / lookups))
    (alpha,), _ = curve_fit(lambda size, rate: -np.expm1(-rate * size), sizes, ratios, p0=[1e-3])
    rmse = float(np.sqrt(np.square(ratios + np.expm1(-alpha * np.asarray(sizes))).mean()))
    return {"sizes": list(sizes), "ratios": ratios, "alpha": float(alpha), "rmse": rmse}


def line(figures: dict[str, Any]) -> str:
    """One run in one line."""
    setup = figures["setup"]
    wrong, local = figures["false_hit_rate"], figures["kept_locally_wrong_rate"]
    rates = "no hits" if wrong is None else f"false {wrong:.3f} (local {local:.3f})"
    late = figures["rounds"][len(figures["rounds"]) // 2 :]
    later = float(np.mean([one["edge_share_of_bytes"] for one in late]))
    hits = " ".join(f"{one['hit_share']:.2f}" for one in figures["rounds"])
    edge = " ".join(f"{one['edge_share_of_bytes']:.2f}" for one in figures["rounds"])
    return (
        f"{setup['world']:7} peers={setup['peer_mode']:8} cache={setup['cache_size']:5} "
        f"{'between ' if setup['inter_cluster'] else ''}"
        f"rule={setup['unit']!s:6} {setup['verifier']:7} hits {figures['hit_share']:.3f} {rates} "
        f"edge bytes {figures['edge_share_of_bytes']:.4f} (second half {later:.4f}) "
        f"{figures['seconds']:.0f} s\n        by round: hits {hits} | edge bytes {edge}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("rounds", 30), ("clients", 20), ("clusters", 4), ("prompts", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--worlds", nargs="+", default=["shared", "apart", "news"])
    add_pair_options(parser)
    options = parser.parse_args(arguments)
    pair = load_models(pair_settings(options))
    results: list[dict[str, Any]] = []
    fit = None
    size = Setup(
        "shared",
        rounds=options.rounds,
        clients=options.clients,
        clusters=options.clusters,
        prompts=options.prompts,
    )
    for setup in setups(options.worlds, size):
        federation = Federation(setup, pair)
        figures = measure(federation)
        print(line(figures), flush=True)
        results.append(figures)
        if federation.recording:
            fit = hit_ratios(federation, (4, 16, 64, 256, 1024))
            print(f"H(S): {fit}", flush=True)
        path = write_report(
            "peers", {"options": vars(options), "runs": results, "hit_ratio_fit": fit}
        )
    print(path)


if __name__ == "__main__":
    main()
