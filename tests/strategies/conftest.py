from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from flwr.supercore.task_identity import TaskIdentity


@pytest.fixture(autouse=True)
def _identity() -> Iterable[None]:
    """Flower's Message wants to know who writes it."""
    before = (TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    yield
    TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = before


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)
