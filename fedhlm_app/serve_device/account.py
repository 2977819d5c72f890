"""What a serving device says of itself: as JSON, and as Prometheus reads it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from clients.records import Stage
from servers.connections import Connections
from servers.metrics import Page

if TYPE_CHECKING:
    from fedhlm_app.serve_device.service import DeviceService


def stats(service: DeviceService, stored: int | None) -> dict[str, Any]:
    """Policy, store and counters, for ``/v1/stats``; `stored` tokens are in the store."""
    texts, counts = service.texts, service.texts.counts
    return {
        "model": texts.settings.slm,
        "client": texts.device.client,
        "context": texts.device.context,
        "policy": {
            "kind": texts.settings.policy,
            "threshold": texts.threshold,
            "round": texts.policy.server_round,
            "problem": texts.policy_problem,
        },
        "texts": counts["texts"],
        "stages": {stage.key: counts[stage.key] for stage in Stage},
        "bytes": {way: counts[way] for way in ("uplink", "downlink")},
        "store": {
            "tokens": stored,
            "texts_lost": counts["not-stored"],
            "problem": texts.store_problem,
        },
        "waiting": service.lockstep.open,
        "answers": dict(service.statuses),
        "time": time.time(),
        "uptime_s": time.monotonic() - service.began,
    }


def metrics(service: DeviceService, connections: Connections) -> str:
    """The page of ``/metrics``."""
    texts, counts, page = service.texts, service.texts.counts, Page()
    service.seen.add_to(page)
    connections.add_to(page)
    stages = {f'stage="{stage.key}"': counts[stage.key] for stage in Stage}
    way = {f'way="{way}"': counts[way] for way in ("uplink", "downlink")}
    reached = int(not texts.device.uplink.link.asleep)
    for kind, name, about, value in (
        ("gauge", "waiting", "Questions that wait or are answered.", service.lockstep.open),
        ("counter", "texts_total", "Texts written.", counts["texts"]),
        ("counter", "tokens_total", "Tokens written, by who decided them.", stages),
        ("counter", "bytes_total", "Bytes of messages.", way),
        ("gauge", "llm_reached", "Whether the LLM answered last.", reached),
        ("gauge", "threshold", "What uncertainties are compared with.", texts.threshold),
        ("gauge", "policy_round", "The round that the policy is of.", texts.policy.server_round),
        ("counter", "texts_lost_total", "Texts whose feedback is lost.", counts["not-stored"]),
    ):
        if value is not None:
            page.add(kind, name, about, value)
    return page.text()
