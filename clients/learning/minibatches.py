"""Local steps on a few tokens at a time: who has more tokens takes more steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from clients.learning.feedback import Feedback

Vector = NDArray[np.float64]


class Differentiable(Protocol):
    """What can be learned by descent."""

    def gradient(self, policy: Vector, feedback: Feedback) -> Vector:
        """Direction float64 [size] that local descent subtracts."""
        ...


def minibatch_gradient(
    learning: Differentiable,
    feedback: Feedback,
    batch_size: int,
    generator: np.random.Generator,
) -> Callable[[Vector], Vector]:
    """Gradient on ``batch_size`` >= 1 tokens at a time, reshuffled after each pass over them.

    Returns a function float64 [size] -> float64 [size] that moves on with every call: what a
    client's local SGD steps take as gradient.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    order = np.zeros(0, np.int64)

    def gradient(policy: Vector) -> Vector:
        nonlocal order
        if not len(order):
            order = generator.permutation(len(feedback)).astype(np.int64)
        rows, order = order[:batch_size], order[batch_size:]
        return learning.gradient(policy, feedback.select(rows))

    return gradient
