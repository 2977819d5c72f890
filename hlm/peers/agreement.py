"""Peers: agreement of token embeddings (FedHLM eq. 9-10) and sketches of contexts.

Eq. 9 is the mean of the *other* clients' token embeddings, eq. 10 the cosine of the own token's
embedding to it. The paper takes the peers' tokens of the same step; whose tokens go in is left to
the caller here, so that entries of like contexts can be used instead.

A context is the small model's last hidden state. It travels as the signs of random projections
(Charikar, STOC 2002): two vectors at angle ``a`` differ in each bit with probability ``a / pi``,
so the Hamming distance of two sketches estimates their cosine at 8-32 bytes a context.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hlm.arrays import IntArray

FloatArray = NDArray[np.float32]
Sketches = NDArray[np.uint8]

NO_AGREEMENT = -1.0
"""Cosine to, or of, a vector of length zero: it points nowhere, so it agrees with nothing."""

_PROJECTION_STREAM = 0x5EED


def unit_rows(vectors: NDArray[np.floating]) -> FloatArray:
    """Each row divided by its length, float32 [n, size]; rows of length zero stay zero."""
    rows = np.asarray(vectors, dtype=np.float32)
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.where(length > 0, length, 1.0), dtype=np.float32)


def centroids(
    embeddings: NDArray[np.floating], groups: IntArray, count: int
) -> NDArray[np.float64]:
    """Mean embedding of each group of peers (eq. 9 for any choice of peers).

    Parameters
    ----------
    embeddings : ndarray [n, size]
        One token embedding a contribution.
    groups : ndarray of int64 [n]
        Which question each contribution belongs to, in [0, count).
    count : int
        Number of questions.

    Returns
    -------
    ndarray of float64 [count, size]
        Zero for a question without contributions.
    """
    sums = np.zeros((count, embeddings.shape[1]), dtype=np.float64)
    np.add.at(sums, groups, embeddings)
    members = np.bincount(groups, minlength=count)[:, None]
    return np.asarray(sums / np.maximum(members, 1))


def cosine(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float64]:
    """Eq. 10, row by row: float64 [n] in [-1, 1], `NO_AGREEMENT` where a row has no direction."""
    left = np.asarray(first, dtype=np.float64)
    right = np.asarray(second, dtype=np.float64)
    scale = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
    usable = np.isfinite(scale) & (scale > 0)
    product = np.einsum("...i,...i->...", left, right)
    ratio = np.clip(np.where(usable, product, 0.0) / np.where(usable, scale, 1.0), -1.0, 1.0)
    return np.where(usable, ratio, NO_AGREEMENT)


class SketchMaker:
    """Sign sketches of contexts; equal arguments give equal sketches on every machine.

    The projections are random signs taken bit by bit from the Philox generator, so that no two
    numpy versions can disagree about them. Contexts are not centred first: on the built-in pair
    the mean of the hidden states carries too little for that to change which neighbours are
    right (``docs/edge.md``), and a mean would have to be agreed on.

    Parameters
    ----------
    size : int
        Length of a hidden state, >= 1.
    bits : int
        Bits of a sketch, a multiple of 64 (so that distances are counted word by word).
    seed : int
        Shared by all who compare sketches, in [0, 2**64).

    Raises
    ------
    ValueError
        If an argument is out of range.
    """

    def __init__(self, size: int, bits: int = 64, seed: int = 0) -> None:
        if size < 1:
            raise ValueError(f"size = {size}: a hidden state has at least 1 number")
        if bits < 64 or bits % 64:
            raise ValueError(f"bits = {bits}: allowed are positive multiples of 64")
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"seed = {seed}: allowed are 0 to 2**64 - 1")
        self.size = size
        self.bits = bits
        generator = np.random.Philox(key=np.array([seed, _PROJECTION_STREAM], dtype=np.uint64))
        words = generator.random_raw(size * (bits // 64)).astype(">u8")
        signs = np.unpackbits(words.view(np.uint8)).reshape(size, bits)
        self._projections = signs.astype(np.float32) * 2 - 1

    @property
    def bytes(self) -> int:
        """Length of one sketch."""
        return self.bits // 8

    def sketch(self, hidden: NDArray[np.floating]) -> tuple[Sketches, NDArray[np.bool_]]:
        """Sketches of hidden states.

        Parameters
        ----------
        hidden : ndarray [n, size]
            Any finite vectors of non-zero length have a sketch; their scale does not matter.

        Returns
        -------
        sketches : ndarray of uint8 [n, bits // 8]
            Zero where there is none.
        usable : ndarray of bool [n]
            False for rows with NaN, infinities, or nothing but zeros: they have no direction.

        Raises
        ------
        ValueError
            If `hidden` has another width.
        """
        rows = np.asarray(hidden, dtype=np.float32)
        if rows.ndim != 2 or rows.shape[1] != self.size:
            raise ValueError(f"hidden has shape {rows.shape}: expected [n, {self.size}]")
        usable = np.isfinite(rows).all(axis=1) & (rows != 0).any(axis=1)
        safe = np.where(usable[:, None], rows, 0.0)
        sketches = np.packbits(safe @ self._projections > 0, axis=1)
        return sketches, usable & ~degenerate(sketches)


def degenerate(sketches: Sketches) -> NDArray[np.bool_]:
    """Sketches that no context makes: all zeros (what NaN or a zero vector gives) or all ones."""
    return np.asarray((sketches == 0).all(axis=1) | (sketches == 0xFF).all(axis=1))


def hamming(queries: Sketches, entries: Sketches) -> NDArray[np.int64]:
    """Differing bits of every pair, int64 [queries, entries]; widths are multiples of 8 bytes."""
    left = np.ascontiguousarray(queries).view(np.uint64)
    right = np.ascontiguousarray(entries).view(np.uint64)
    distance = np.zeros((len(left), len(right)), dtype=np.int64)
    for word in range(left.shape[1]):
        distance += np.bitwise_count(left[:, word, None] ^ right[None, :, word])
    return distance


def distance_of_cosine(gate: float, bits: int) -> int:
    """Most differing bits of two sketches whose estimated cosine is at least `gate` ([-1, 1])."""
    if not -1 <= gate <= 1:
        raise ValueError(f"gate = {gate}: a cosine lies in -1 .. 1")
    return math.floor(math.acos(gate) / math.pi * bits + 1e-9)
