"""The edge tier of a device: its cache, and its way to the edge server of its cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from logging import getLogger
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from clients.records import Traffic
from clients.resolvers.cache import CacheConfig, CacheResolver, TokenCache
from clients.resolvers.chain import Resolver
from clients.resolvers.edge import EdgeResolver
from clients.resolvers.edge_exchange import EdgeResolverConfig
from clients.resolvers.opportunistic import BYTES, OpportunisticConfig, OpportunisticRule, Price
from fedhlm_app.client.routed import Figures
from fedhlm_app.learning.rules import sums_rule
from fedhlm_app.settings import Settings
from hlm.arrays import FloatArray
from hlm.peers.agreement import SketchMaker
from hlm.peers.modes import PEER_MODES
from hlm.transport import LinkDown, Transport
from hlm.wire import WireError
from hlm.wire.edge_update import EdgeUpdate, decode_outcome, encode_update

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = getLogger("flwr")

ATTEMPTS = 3
"""How often an update is sent to an edge server that does not answer."""

State = dict[str, dict[str, NDArray[Any]]]


def has_edge(settings: Settings) -> bool:
    """Whether any tier stands between the device's policy and the LLM."""
    return settings.cache_mode != "off" or settings.peer_mode != "off"


def token_embeddings(model: PreTrainedModel) -> NDArray[np.float32]:
    """Input embeddings of a model, float32 [vocab, size]."""
    weight: Any = model.get_input_embeddings().weight
    found: NDArray[np.float32] = weight.detach().float().cpu().numpy()
    return found


class EdgeSide:
    """A device's own cache, and its way to the edge server of its cluster.

    Parameters
    ----------
    settings : Settings
        Of the run.
    client : int
        Number of the device.
    model : transformers.PreTrainedModel
        The small model: its embeddings, and the size of its hidden states.
    link : callable
        Cluster number to a transport.
    """

    def __init__(
        self,
        settings: Settings,
        client: int,
        model: PreTrainedModel,
        link: Callable[[int], Transport],
    ) -> None:
        self.settings = settings
        self.client = client
        self._link = link
        text_config = model.config.get_text_config()
        self._vocab = int(text_config.vocab_size)
        self._hidden = int(text_config.hidden_size)
        self._embeddings = token_embeddings(model)
        self._sketches = SketchMaker(self._hidden, 64 * settings.sketch_words, settings.seed)
        self._cluster = 0
        self._before: dict[str, int] = {}
        self.cache: CacheResolver | None = None
        self.edge: EdgeResolver | None = None

    def join(self, cluster: int, cluster_size: int, state: Mapping[str, Any]) -> None:
        """Take up the work in a cluster, with what was learned before (`state`)."""
        settings = self.settings
        if settings.cache_mode != "off":
            cache = TokenCache(
                self._embeddings,
                CacheConfig(
                    settings.cache_mode,
                    settings.cache_size,
                    settings.similarity,
                    settings.context_gate,
                    max(settings.reuse_gate, settings.context_gate),
                ),
                self._hidden,
            )
            self.cache = CacheResolver(
                cache,
                settings.audit_rate,
                settings.max_false_hits,
                before_peers=settings.peer_mode != "off",
            )
            if "cache" in state:
                cache.restore(dict(state["cache"]))
        if settings.peer_mode != "off":
            self.edge = EdgeResolver(
                self._link(cluster),
                EdgeResolverConfig(self.client, self._vocab, cluster_size),
                self._sketches if PEER_MODES[settings.peer_mode].by_context else None,
                self._rule(),
                settings.audit_rate,
                settings.max_false_hits,
            )
            if "edge" in state:
                self.edge.restore(dict(state["edge"]))
                if int(state["cluster"]["number"]) != cluster:
                    self.edge.joined_cluster()
        if self.cache is not None and "cache-hits" in state:
            hits = self.cache.tier.false_hits
            hits.checked, hits.wrong = (int(n) for n in state["cache-hits"]["counts"])
        self._cluster = cluster
        self._before = self._hits()

    def _rule(self) -> OpportunisticRule | None:
        settings = self.settings
        if not settings.opportunistic:
            return None
        edge = llm = BYTES
        if settings.cost_unit == "ms":
            edge = Price(settings.edge_round_trip, 8000 / (settings.edge_rate * 1e6))
            llm = Price(settings.llm_round_trip, 8000 / (settings.llm_rate * 1e6))
        config = OpportunisticConfig(edge=edge, llm=llm, error=settings.cost_wrong_hit)
        return OpportunisticRule(config)

    @property
    def resolvers(self) -> list[Resolver[Any]]:
        """Cache, then edge."""
        return [tier for tier in (self.cache, self.edge) if tier is not None]

    def finish(self, traffic: Traffic) -> State:
        """Send what waits to be shared; what must be kept until the next round."""
        state: State = {}
        if self.cache is not None:
            state["cache"] = self.cache.cache.state()
            hits = self.cache.tier.false_hits
            state["cache-hits"] = {"counts": np.array([hits.checked, hits.wrong])}
        if self.edge is not None:
            traffic.include(self.edge.flush())
            state["edge"] = self.edge.state()
            state["cluster"] = {"number": np.array(self._cluster)}
        return state

    def leave(self, cluster: int, update: EdgeUpdate) -> int:
        """Leave a round's update with the edge server; bytes sent.

        Whether it was taken is what the edge server tells the cloud.
        """
        payload = encode_update(update)
        problem, sent = "not sent", 0
        while sent < ATTEMPTS:
            sent += 1
            try:
                outcome = decode_outcome(self._link(cluster).exchange(payload))
            except (LinkDown, WireError) as error:
                problem = str(error)
                continue
            # One that is there already had its answer lost on the way.
            problem = "" if outcome == "taken" or (sent > 1 and outcome == "duplicate") else outcome
            break
        if problem:
            logger.warning("client %d: its update is lost to the round: %s", self.client, problem)
        return len(payload) * sent

    def figures(self) -> dict[str, int]:
        """Since `join`: hits audited, those of them that were wrong, and copies in the cache."""
        return {name: count - self._before.get(name, 0) for name, count in self._hits().items()}

    def _hits(self) -> dict[str, int]:
        found = {}
        for name, tier in (("cache", self.cache), ("edge", self.edge)):
            if tier is not None:
                found[f"{name}-audited"] = int(tier.tier.false_hits.checked)
                found[f"{name}-false"] = int(tier.tier.false_hits.wrong)
        if self.cache is not None:
            found["cache-copies"] = self.cache.cache.copies
        return found


def leave_update(
    edge: EdgeSide | None,
    settings: Settings,
    policy: FloatArray,
    metrics: Figures,
    config: Mapping[str, Any],
) -> int:
    """Leave what a round brought with the edge server; bytes sent.

    Parameters
    ----------
    edge : EdgeSide or None
    settings : Settings
        Of the run.
    policy : float64 [d]
    metrics : dict
        Of the reply; list metrics of a rule of sums are taken out of it.
    config : mapping
        The message's ConfigRecord.
    """
    if edge is None:
        raise ValueError("average-at: this device knows no edge server")
    rule, sums = sums_rule(settings), np.zeros(0)
    if rule is not None and config.get("calibrate", False):
        names = rule.calibration().lengths()
        sums = np.concatenate([np.asarray(metrics.pop(name), np.float64) for name in names])
    update = EdgeUpdate(
        client=edge.client,
        number=int(config["round"]),
        weight=int(cast(int, metrics["num-examples"])),
        values=np.zeros(0) if len(sums) else policy,
        contribution=max(0, int(config.get("contribution", 0))),
        sums=sums,
    )
    return edge.leave(int(config["cluster"]), update)
