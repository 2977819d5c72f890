"""Types of the arrays that all parts hand to each other, and named ones as a single vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

Array = Any
"""A torch.Tensor on the CPU; on a device without PyTorch a numpy.ndarray, of which less is used."""


def joined(arrays: Mapping[str, FloatArray]) -> FloatArray:
    """All entries, array after array: float64 [d]."""
    return np.concatenate([np.ravel(value) for value in arrays.values()])


def parted(vector: FloatArray, like: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """The arrays that `joined` made [d] of: views of `vector`, named and shaped as in `like`."""
    ends = np.cumsum([value.size for value in like.values()])
    parts = np.split(vector, ends[:-1])
    if ends[-1] != len(vector):
        raise ValueError(f"vector of {len(vector)} numbers; allowed: {ends[-1]}")
    return {n: part.reshape(v.shape) for (n, v), part in zip(like.items(), parts, strict=True)}
