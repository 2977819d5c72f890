"""The devices of a run in this process, with what they keep from round to round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from clients.records import Traffic
from fedhlm_app.client.device import Device
from fedhlm_app.client.edge import State
from fedhlm_app.hosting.edges_here import EdgesHere
from fedhlm_app.settings import Settings
from hlm.transport import Transport


class DevicesHere:
    """All devices, and the edge servers that they ask.

    Parameters
    ----------
    settings : Settings
        Of the run.
    transport : Transport
        Reaches the LLM service.
    assigned : sequence of int
        The cluster of each client.
    """

    def __init__(self, settings: Settings, transport: Transport, assigned: Sequence[int]) -> None:
        self.edges = EdgesHere(settings, assigned)
        self._assigned = list(assigned)
        self._sizes = np.bincount(self._assigned, minlength=settings.clusters)
        # What a client would keep between rounds in its Flower state.
        self._states: list[State] = [{} for _ in self._assigned]
        self._made = lru_cache(None)(
            lambda client: Device(settings, client, transport, self.edges.link)
        )

    def joined(self, client: int) -> Device:
        """A device that takes up its work in its cluster."""
        device = self._made(client)
        if device.edge is not None:
            cluster = self._assigned[client]
            device.edge.join(cluster, int(self._sizes[cluster]), self._states[client])
        return device

    def finish(self, device: Device, traffic: Traffic) -> dict[str, int]:
        """End a device's round: figures of its tiers, whose last messages add to `traffic`."""
        if device.edge is None:
            return {}
        self._states[device.client] = device.edge.finish(traffic)
        return device.edge.figures()

    def memory(self) -> float:
        """Bytes that a device keeps between rounds, on average."""
        arrays = [a for state in self._states for kept in state.values() for a in kept.values()]
        return sum(np.asarray(array).nbytes for array in arrays) / len(self._states)

    def state(self) -> dict[str, Any]:
        """What all of them know, for `restore`."""
        return {"devices": self._states, "edges": self.edges.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from another's `state`."""
        self._states = state["devices"]
        self.edges.restore(state["edges"])
