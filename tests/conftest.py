"""In which order the suite runs: what mostly waits comes first, beside what computes.

Tests that start processes take minutes and little of a processor. Alphabetically they come
together; at the end the last of them would keep one worker busy after the others have ended, and
many at once would make each other late.
"""

from __future__ import annotations

import gc
import os

import pytest
from hypothesis import HealthCheck, settings

# Neither other work on the machine nor an unlucky draw may make a property test red.
settings.register_profile(
    "suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")
# Ray gives its workers the lowest priority but four: beside busy tests one takes minutes to start.
os.environ.setdefault("RAY_worker_niceness", "0")


@pytest.hookimpl(trylast=True)  # after what is not asked for has gone, as shares are counted
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin the shares of two thirds of the workers with what may take longest.

    That is tests that start processes, or have a time limit of their own.

    pytest-xdist hands every worker one run of neighbouring tests and lets those that are done take
    from the ends of others'. Tests of a module stay together, since they share fixtures.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    modules: dict[str, list[pytest.Item]] = {}
    others: list[pytest.Item] = []
    for item in items:
        if item.get_closest_marker("e2e") or item.get_closest_marker("timeout"):
            modules.setdefault(item.location[0], []).append(item)
        else:
            others.append(item)
    shares: list[list[pytest.Item]] = [[] for _ in range(workers)]
    first = max(1, 2 * workers // 3)
    for index, tests in enumerate(modules.values()):
        shares[index % first] += tests
    left = len(items)
    for index, share in enumerate(shares):
        size = left // (workers - index)
        share += others[: (count := max(size - len(share), 0))]
        del others[:count]
        left -= len(share)
    items[:] = [item for share in shares for item in share]


def pytest_collection_finish() -> None:
    """Leave what has been imported out of the collections of garbage that some tests ask for."""
    gc.freeze()
