"""How long a device leaves a server alone that did not answer: the same for every link."""

from __future__ import annotations

import time
from collections.abc import Callable


class BackOff:
    """A pause after each failure, twice as long after each further one, until an answer comes.

    Parameters
    ----------
    first, longest : float
        Pause after a first failure, and the longest one, in s; both >= 0.
    clock : callable
        Seconds on a clock that never goes back.
    """

    def __init__(
        self, first: float, longest: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.first = first
        self.longest = longest
        self.clock = clock
        self._next = first
        self._until = float("-inf")

    @property
    def asleep(self) -> bool:
        """Whether the server is to be left alone now."""
        return self.clock() < self._until

    def failed(self) -> None:
        """No answer came: begin a pause."""
        self._until = self.clock() + self._next
        self._next = min(2 * self._next, self.longest)

    def answered(self) -> None:
        """An answer came, whatever it says: the next failure is a first one again."""
        self.wake()
        self._next = self.first

    def wake(self) -> None:
        """End the pause, so that the server may be tried at once."""
        self._until = float("-inf")
