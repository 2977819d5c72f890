"""Where the updates of a cluster are averaged: in its edge server, or in the cloud."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedhlm_app.settings.model import Settings

_PLAIN = ("fedavg", "fedprox")


def cloud_only(settings: Settings) -> str:
    """What to set so that edge servers can average; empty where they can."""
    for name, does, instead in (
        ("peer-mode", settings.peer_mode != "off", "context, which starts edge servers"),
        ("strategy", settings.strategy in _PLAIN, "fedavg, the cloud need not see each client's"),
        ("edge-rule", settings.edge_rule == "weighted-mean", "weighted-mean"),
        ("personalisation", settings.personalisation in ("global", "cluster"), "cluster"),
        ("privacy", settings.privacy != "central", "local, since edge servers add no noise"),
        ("recluster-every", not settings.recluster_every, "0"),
    ):
        if not does:
            return f"set {name}={instead}"
    return ""


def averages_at_edge(settings: Settings) -> bool:
    """Whether eq. 7 runs in the edge servers."""
    return settings.average_at != "cloud" and not cloud_only(settings)
