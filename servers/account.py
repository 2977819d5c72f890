"""What a served LLM says of itself: as JSON, and as Prometheus reads it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from servers.metrics import Page

if TYPE_CHECKING:
    from servers.connections import Connections
    from servers.service import ServedLanguageModel


def stats(served: ServedLanguageModel) -> dict[str, Any]:
    """Model, limits and counters, for ``/v1/stats``."""
    service, engine = served.service, served.service.engine
    return {
        **service.describe(),
        "model": served.model,
        "tokenizer": served.tokenizer,
        "max_sessions": engine.max_sessions,
        "max_bytes": service.limits.max_bytes,
        "answer_seconds": served.options.answer_seconds,
        "time": time.time(),
        "uptime_s": time.monotonic() - served.began,
        "waiting": served.waiting.taken,
        "abandoned": served.batcher.abandoned,
        "answers": {key: count for key, count in served.counts.items() if key.isdigit()},
        "bytes": {way: served.counts[f"bytes-{way}"] for way in ("uplink", "downlink")},
        "engine": dict(vars(engine.stats)),
        "streams": {"open": len(service.streams), **vars(service.streams.stats)},
    }


def metrics(served: ServedLanguageModel, connections: Connections) -> str:
    """The page of ``/metrics``."""
    service, engine, page = served.service, served.service.engine.stats, Page()
    served.seen.add_to(page)
    connections.add_to(page)
    way = {f'way="{way}"': served.counts[f"bytes-{way}"] for way in ("uplink", "downlink")}
    texts = min(len(service.texts), service.engine.max_sessions)
    for kind, name, about, value in (
        ("gauge", "waiting", "Requests that wait or are answered.", served.waiting.taken),
        ("gauge", "body_bytes", "Bytes of bodies that are held.", served.bodies.held.taken),
        ("counter", "bytes_total", "Bytes of messages.", way),
        ("counter", "verdicts_total", "Drafts decided.", service.verdicts),
        ("counter", "tokens_read_total", "Tokens that the model read.", engine.tokens),
        ("counter", "passes_total", "Forward passes.", engine.passes),
        ("counter", "pass_seconds_total", "Time inside forward passes, s.", engine.seconds),
        ("gauge", "sessions", "Texts that are held, at most.", texts),
        ("counter", "evictions_total", "Texts that gave way to others.", engine.evictions),
        ("gauge", "streams", "Streams that are open.", len(service.streams)),
        ("counter", "streams_total", "Streams opened.", service.streams.stats.opened),
        ("counter", "abandoned_total", "Requests nobody waited for.", served.batcher.abandoned),
    ):
        page.add(kind, name, about, value)
    page.add_histograms("batch_requests", "Requests that shared a turn.", {"": service.batches})
    return page.text()
