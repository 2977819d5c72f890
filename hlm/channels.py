"""What a link costs in time, and the links that methods are compared over."""

import math
from dataclasses import dataclass

from hlm.ranges import require_between

__all__ = ["LINKS", "Link"]


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

    def seconds(self, messages: int, carried_bytes: float) -> float:
        """Seconds of requests that wait for their replies one after the other, without compute.

        Parameters
        ----------
        messages
            Requests, from 0; each pays a round trip.
        carried_bytes
            All bytes of these requests and replies, from 0.
        """
        require_between("messages", messages, 0, math.inf)
        require_between("carried_bytes", carried_bytes, 0.0, math.inf)
        return messages * self.round_trip_s + 8.0 * carried_bytes / self.rate_bits_per_s


LINKS = (
    Link("1 Mbit/s 60 ms", 1e6, 0.060),
    Link("10 Mbit/s 30 ms", 1e7, 0.030),
    Link("100 Mbit/s 5 ms", 1e8, 0.005),
)
"""A poor cell, a good cell, a wired line."""
