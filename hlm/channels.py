"""What a link costs in time, and the links that methods are compared over."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hlm.arrays import FloatArray
from hlm.ranges import require_between


@dataclass(frozen=True)
class Link:
    """A way between a device and a server that loses nothing.

    Parameters
    ----------
    name
        For tables.
    rate_bits_per_s
        In either direction, above 0.
    round_trip_s
        Seconds there and back of an empty message, from 0.
    """

    name: str
    rate_bits_per_s: float
    round_trip_s: float

    def __post_init__(self) -> None:
        require_between("rate_bits_per_s", self.rate_bits_per_s, 0.0, math.inf, open_low=True)
        require_between("round_trip_s", self.round_trip_s, 0.0, math.inf)


LINKS = (
    Link("1 Mbit/s 60 ms", 1e6, 0.060),
    Link("10 Mbit/s 30 ms", 1e7, 0.030),
    Link("100 Mbit/s 5 ms", 1e8, 0.005),
)
"""A poor cell, a good cell, a wired line."""


class Times:
    """When what happens in one process would have happened over links, each by itself.

    Nothing waits here: the device's compute, exchanges and frames of streams are told as they
    happen, with the seconds that they took. A step in which the server hears of a stop
    goes on to its end.

    Parameters
    ----------
    links : sequence of Link
        At least one.

    Attributes
    ----------
    now : float64 [links]
        Seconds since the beginning.
    overshoot : float64 [links]
        Tokens that the LLM would have written in vain after stops.
    busy : float64 [links]
        Seconds since the beginning until which the last of these steps goes on.
    """

    def __init__(self, links: Sequence[Link]) -> None:
        self.trip = np.array([link.round_trip_s for link in links])
        self._byte = np.array([8 / link.rate_bits_per_s for link in links])
        self.now = np.zeros(len(links))
        self.overshoot = np.zeros(len(links))
        self.busy = np.zeros(len(links))

    def compute(self, seconds: float) -> None:
        """The device works, and waits for nobody."""
        self.now += seconds

    def exchange(self, up: int, down: int, seconds: float) -> None:
        """A request of `up` bytes and its reply of `down`, which took the server `seconds`."""
        arrived = self.now + self.trip / 2 + self.carried(up)
        self.now = np.maximum(arrived, self.busy) + seconds + self.trip / 2 + self.carried(down)

    def carried(self, size: int) -> FloatArray:
        """Seconds that bytes take, float64 [links]."""
        return np.asarray(size * self._byte)

    def stream(self, up: int, down: int, seconds: float) -> StreamTimes:
        """A stream is opened, and its first frame arrives: an exchange."""
        self.exchange(up, down, seconds)
        return StreamTimes(self, down, seconds)


class StreamTimes:
    """One stream: the server writes on while frames travel and the device works.

    Its window is not felt: controls arrive before it is used up.

    Parameters
    ----------
    times : Times
        Where the stream's first frame has just arrived.
    down : int
        Bytes of that frame.
    seconds : float
        That it took the server.
    """

    def __init__(self, times: Times, down: int, seconds: float) -> None:
        self._times = times
        self._arrived = times.now.copy()
        self._written = times.now - times.trip / 2 - times.carried(down)
        self._frames, self._seconds = 0, seconds

    def frame(self, down: int, seconds: float) -> None:
        """The device waits for the next frame, of a token."""
        times = self._times
        self._frames += 1
        self._seconds = seconds
        self._written = self._written + seconds
        there = np.maximum(self._arrived, self._written + times.trip / 2)
        self._arrived = there + times.carried(down)
        times.now = np.maximum(times.now, self._arrived)

    def stop(self, credit: int) -> None:
        """The device takes the text back; `credit`: tokens that the server might write in all."""
        late = self._times.now + self._times.trip / 2 - self._written
        tokens = np.ceil(late / max(self._seconds, 1e-9))
        tokens = np.clip(tokens, 0, max(0, credit - self._frames))
        self._times.overshoot += tokens
        self._times.busy = self._written + tokens * self._seconds
