"""Shares: what is divided so that all who ask have alike, and who has asked how much lately."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import TypeVar

LATELY = 256
"""Turns for which an origin that asks nothing more still counts as one beside others."""

Thing = TypeVar("Thing")
One = TypeVar("One", bound=Hashable)


class Lately:
    """Who has had turns lately, and what each may still have at once.

    Parameters
    ----------
    own : int
        What of a turn one may have beside others that ask less.
    """

    def __init__(self, own: int) -> None:
        self._own = own
        self._turns = 0
        self._served: dict[Hashable, int] = {}  # the last turn of each that waits, or asked lately
        self._left: dict[Hashable, int] = {}  # of a slice, what each had left after that turn

    @property
    def several(self) -> bool:
        """Whether there is more than one."""
        return len(self._served) > 1

    def wait(self, asking: Collection[Hashable]) -> None:
        """Know who waits for a turn; who comes anew is behind those that do."""
        served = {one: turn for one, turn in self._served.items() if turn > self._turns - LATELY}
        self._served = served | {one: self._served.get(one, self._turns) for one in asking}
        self._left = {one: left for one, left in self._left.items() if one in self._served}

    def since(self, one: Hashable) -> int:
        """The last turn of one that waits."""
        return self._served[one]

    def limited(self, needs: Mapping[One, int], whole: int) -> dict[One, int]:
        """What each may have of a turn of `whole`, which it need not get.

        Beside others nobody has more than all of them together, or than its own least; but who has
        asked little lately may have a whole turn.
        """
        if not self.several:
            return dict(needs)
        total = sum(needs.values())
        return {
            one: min(need, max(self._own, self._saved(one, whole), total - need))
            for one, need in needs.items()
        }

    def take(self, taken: Mapping[One, int], whole: int) -> None:
        """A turn is over: what each had of it."""
        self._turns += 1
        for one, tokens in taken.items():
            self._left[one] = max(0, self._saved(one, whole) - tokens)
            self._served[one] = self._turns

    def _saved(self, one: Hashable, whole: int) -> int:
        since = self._turns - self._served.get(one, self._turns)
        return min(whole, self._left.get(one, whole) + since * whole // LATELY)


def alternating(lists: Collection[Iterable[Thing]]) -> list[Thing]:
    """The first of each list, then the second of each, and so on."""
    return [one for level in zip_longest(*lists) for one in level if one is not None]


def fair_shares(needs: Sequence[int], total: int) -> list[int]:
    """Share out `total`: nobody gets more than it needs, nor less than another but by need.

    Parameters
    ----------
    needs : sequence of int
        At least 1 each.
    total : int
        What there is.

    Returns
    -------
    list of int
        At least 1 each, together at most `total`; 0 for those beyond the first `total`.
    """
    if sum(needs) <= total:
        return list(needs)
    served = len(needs[:total])
    shares, left = [1] * served + [0] * (len(needs) - served), total
    order = sorted(range(served), key=needs.__getitem__)
    for rank, index in enumerate(order):
        shares[index] = min(needs[index], left // (served - rank))
        left -= shares[index]
    return shares
