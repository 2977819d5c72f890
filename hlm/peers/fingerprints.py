"""Fingerprints of contexts: what tells two devices, in 24 bits each, that they meet the same ones.

A fingerprint is a hash of most of a context's sketch, so equal contexts have equal fingerprints
and near ones mostly do not. Of all the contexts it has met a device shows only the smallest few
fingerprints (bottom-k sketch; Broder, 1997): whoever met the same contexts shows the same ones, so
the share of them that others show as well estimates the share of contexts in common, at a size
that does not grow with the number of contexts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hlm.arrays import IntArray

Sketches = NDArray[np.uint8]

FINGERPRINTS = 1 << 24
"""Different fingerprints there are. The smallest few of a hundred contexts lie in the lowest tenth
of these, so two strangers with eight each have one in common once in some 30,000 meetings."""

_HASHED_BYTES = 6


def fingerprints(sketches: Sketches) -> IntArray:
    """Fingerprint of each sketch.

    The first 48 bits of a sketch are hashed (the finaliser of splitmix64; Steele et al., OOPSLA
    2014). Contexts of cosine .999 agree in all of them with probability .5, those of cosine .98
    with .04, unrelated ones practically never.

    Parameters
    ----------
    sketches : ndarray of uint8 [n, w]
        At least 6 bytes wide.

    Returns
    -------
    ndarray of int64 [n]
        In [0, `FINGERPRINTS`).

    Raises
    ------
    ValueError
        If the sketches are narrower.
    """
    if sketches.ndim != 2 or sketches.shape[1] < _HASHED_BYTES:
        raise ValueError(
            f"sketches have shape {sketches.shape}: need [n, at least {_HASHED_BYTES}]"
        )
    value = np.zeros(len(sketches), np.uint64)
    for column in range(_HASHED_BYTES):
        value = (value << np.uint64(8)) | sketches[:, column].astype(np.uint64)
    value += np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    value ^= value >> np.uint64(31)
    return (value >> np.uint64(64 - FINGERPRINTS.bit_length() + 1)).astype(np.int64)


def smallest(first: IntArray, second: IntArray, count: int) -> IntArray:
    """The `count` smallest different values of both, int64, increasing."""
    return np.unique(np.concatenate([first, second]))[:count]
