"""Where a request came from, as far as what carried it knows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import NamedTuple


class Origin(NamedTuple):
    """Who asks; all requests of one origin share its turns and quotas.

    Attributes
    ----------
    device : str
        Name of the device that its token proves, behind its tenant's and a slash if it has one;
        empty where tokens name nobody.
    address : str
        Where it asks from, unless its device is known; empty within a process.
    """

    device: str = ""
    address: str = ""

    @property
    def shares(self) -> tuple[Hashable, ...]:
        """Of whose shares it has its own, the widest first: its tenant's, if it has one; then its.

        All devices of a tenant (a run, a customer) have the share of one together.
        """
        tenant, slash, _ = self.device.partition("/")
        return (tenant, self) if slash else (self,)


NOBODY = Origin()
"""Within a process, where all trust each other."""


class Full(Exception):
    """There is no more of something.

    Attributes
    ----------
    share : bool
        The origin has its share of it; others would still get some.
    """

    def __init__(self, share: bool) -> None:
        super().__init__()
        self.share = share


class Shared:
    """Something bounded, of which no origin gets more than half, nor all of a tenant together.

    Parameters
    ----------
    most : int
        What there is, >= 1.

    Attributes
    ----------
    taken : int
        What all have of it together.
    """

    def __init__(self, most: int) -> None:
        self.most, self.taken = most, 0
        self._of: Counter[Hashable] = Counter()

    def take(self, origin: Origin, amount: int) -> None:
        """Give some of it to an origin; negative: back from it.

        Raises
        ------
        Full
            When there is no more; nothing is changed then.
        """
        if amount > 0 and self.taken + amount > self.most:
            raise Full(share=False)
        half = max(1, self.most // 2)
        if amount > 0 and any(self._of[share] + amount > half for share in origin.shares):
            raise Full(share=True)
        self.taken += amount
        for share in origin.shares:
            self._of[share] += amount
            if not self._of[share]:
                del self._of[share]


Caller = tuple[str, int]
"""A device's name, if its token proves one, and the client number that it gives itself."""
