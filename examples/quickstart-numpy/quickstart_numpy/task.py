"""The model and its data: linear regression, made on the fly."""

from __future__ import annotations

import numpy as np

TRUE = np.array([2.0, -1.0, 0.5])
"""Weights that made the data."""


def initial_model() -> list[np.ndarray]:
    """Weights float64 [3] and offset float64 [1], zero."""
    return [np.zeros(3), np.zeros(1)]


def load_data(partition: int) -> tuple[np.ndarray, np.ndarray]:
    """Features [n, 3] and targets [n] of one partition; partitions differ in size and noise."""
    rng = np.random.default_rng(partition)
    features = rng.normal(partition % 3 - 1.0, 1.0, (20 + 10 * partition, 3))
    return features, features @ TRUE + 1.0 + rng.normal(0.0, 0.1, len(features))


def loss(model: list[np.ndarray], features: np.ndarray, targets: np.ndarray) -> float:
    """Mean squared error."""
    return float(np.mean((features @ model[0] + model[1] - targets) ** 2))


def train(
    model: list[np.ndarray], features: np.ndarray, targets: np.ndarray, steps: int, lr: float
) -> list[np.ndarray]:
    """Gradient steps on the mean squared error."""
    weights, offset = model
    for _ in range(steps):
        error = features @ weights + offset - targets
        weights = weights - lr * features.T @ error / len(targets)
        offset = offset - lr * error.mean(keepdims=True)
    return [weights, offset]
