"""Golden runs by name."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.golden.cases import COMPARISONS, RUNS
from tests.golden.recording import Golden, compared, federated

CASES = (*RUNS, *(f"compare-{decoding}" for decoding in COMPARISONS))


def result(name: str) -> Golden:
    """Make one golden run."""
    if name not in RUNS:
        return compared(name.removeprefix("compare-"))
    with tempfile.TemporaryDirectory() as folder:
        return federated(name, Path(folder))
