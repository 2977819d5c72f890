"""Whose tokens an edge server lets pass: every device is judged by tokens the LLM decided.

The edge server cannot see whether a token was verified, it is told so. What it does see is how a
device's tokens compare with those that *other* devices later have from the LLM for the same
question. Each such comparison is an audit, also when the token was not passed on; a device earns
trust by audits it passed and is barred by those it failed. Nobody audits itself, and one reporter
alone bars nobody for the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from hlm.intervals import wilson_interval


@dataclass
class _Audits:
    passed: float = 0.0
    failed: float = 0.0

    def note(self, right: bool, window: int) -> None:
        if self.passed + self.failed >= window:
            # Forget gradually, so that a device that turns bad is noticed.
            keep = (window - 1) / window
            self.passed, self.failed = self.passed * keep, self.failed * keep
        self.passed += right
        self.failed += not right


@dataclass
class Reputation:
    """Audits of each device, by each reporter.

    Parameters
    ----------
    limit : float
        Share of failed audits, in (0, 1], that separates trust from distrust.
    window : int
        Audits of a device by one reporter that count; older ones fade.
    reporters : int
        Reporters that must agree before a device is barred for all: 2, or 1 in a cluster of two.

    Raises
    ------
    ValueError
        If a parameter is out of range.
    """

    limit: float = 0.5
    window: int = 16
    reporters: int = 2
    _audits: dict[int, dict[int, _Audits]] = field(default_factory=dict)
    _barred: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        if not 0 < self.limit <= 1:
            raise ValueError(f"limit = {self.limit}: must lie in 0 .. 1, above 0")
        if self.window < 1:
            raise ValueError(f"window = {self.window}: must be at least 1")

    @property
    def barred(self) -> frozenset[int]:
        """Devices whose tokens no longer count."""
        return frozenset(self._barred)

    def note(self, device: int, reporter: int, right: bool) -> bool:
        """Count one audit; returns True if the device is barred by it.

        A device is barred when the lower end of the 95 % Wilson interval of its failed share
        exceeds the limit, over all audits and in the eyes of `reporters` reporters.
        """
        if device == reporter or device in self._barred:
            return False
        by = self._audits.setdefault(device, {})
        by.setdefault(reporter, _Audits()).note(right, self.window)
        if right:
            return False
        against = sum(self._interval([audits])[0] > self.limit for audits in by.values())
        if against >= self.reporters and self._interval(list(by.values()))[0] > self.limit:
            self._barred.add(device)
            return True
        return False

    def excludes(self, asker: int, device: int) -> bool:
        """Whether the device is barred, or the asker's own audits speak against it."""
        own = self._audits.get(device, {}).get(asker)
        return device in self._barred or (own is not None and self._interval([own])[0] > self.limit)

    def trusts(self, asker: int, device: int) -> bool:
        """Whether the device's token may pass on its own to this asker.

        True when the upper end of the interval over all audits is at most the limit and the
        device is not excluded.
        """
        if self.excludes(asker, device):
            return False
        return self._interval(list(self._audits.get(device, {}).values()))[1] <= self.limit

    def _interval(self, audits: list[_Audits]) -> tuple[float, float]:
        failed = math.fsum(one.failed for one in audits)
        total = failed + math.fsum(one.passed for one in audits)
        return wilson_interval(failed, total)
