"""A device whose uncertain drafts open streams, and what its texts must be whatever happens."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from clients.policy import ThresholdPolicy
from fedhlm_app.client.device import Device
from fedhlm_app.client.routed import Routed
from fedhlm_app.hosting.llm import build_service
from fedhlm_app.settings import Settings
from fedhlm_app.transport.http_transport import HttpTransport
from fedhlm_app.transport.transports import DirectTransport
from hlm.transport import Frames, Transport

SETTINGS = Settings.from_sources(
    {
        "escalation": "span", "tokens-per-round": 24, "tokens-per-prompt": 12, "clients": 3,
        "clusters": 1, "learning": "balanced",
    },
    environ={},
)  # fmt: skip


class Struck(HttpTransport):
    """Has something happen once three pieces of streams are there."""

    def __init__(
        self, address: str, strike: Callable[[], object], timeout: float = 300, token: str = ""
    ) -> None:
        super().__init__(address, timeout=timeout, token=token)
        self.strike, self.pieces = strike, 3

    def stream(self, payload: bytes) -> Frames:
        for frames in super().stream(payload):
            self.pieces -= 1
            if self.pieces == 0:
                self.strike()
            yield frames


def route(transport: Transport) -> Routed:
    """A round of the device."""
    return Device(SETTINGS, 0, transport).train_round(ThresholdPolicy(0.5), 1)


@cache
def expected() -> Routed:
    """The same within this process."""
    return route(DirectTransport(build_service(SETTINGS)))


def unresolved(found: Routed) -> int:
    """Tokens without the LLM; up to the first of them each text must be the one of `expected`."""
    batch, own = found.records[0], expected().records[0]
    right = (batch.token == own.token) | ~own.present
    lost = np.cumsum(batch.unresolved, axis=1) > 0
    assert (right | lost).all()
    counted = sum(records.stage_counts()["unresolved"] for records in found.records)
    assert bool(counted) <= bool(found.traffic.failures)
    return counted
