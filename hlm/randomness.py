"""Random numbers that two machines can draw without talking to each other.

Device and server have to agree on the numbers behind a token (Daliri, Musco and Suresh,
arXiv 2408.07978, call this communication-free coupling), and a batch may hold any sessions in any
order. Every number is therefore a pure function of (seed, session, position, purpose,
index): the Philox 4x64 counter generator gets the first two as its key and the rest as its
counter, so two different draws never share a block and nothing depends on what else is in the
batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

_UINT64_COUNT = 2**64
_POSITION_LIMIT = 2**63
_SQRT_HALF = 0.7071067811865476
# ln 2 in two parts: the high one has 21 trailing zero bits, so that exponent * high is exact.
_LN2_HIGH = 0.6931471803691238
_LN2_LOW = 1.9082149292705877e-10
# ln((1+s)/(1-s)) = 2 s (1 + s^2/3 + s^4/5 + ...); |s| <= 0.1716 makes twelve terms exact to 1e-18.
_SERIES = tuple(1.0 / (2 * term + 1) for term in range(11, -1, -1))


class Purpose(IntEnum):
    """What a random number is for; draws for different purposes are independent."""

    DRAFT = 1
    ACCEPT = 2
    RESAMPLE = 3
    COUPLED = 4
    UNCERTAINTY = 5
    ROUTE = 6
    AUDIT = 7


@dataclass(frozen=True)
class DrawKeys:
    """The names of the tokens that a batch draws, one row each.

    Attributes
    ----------
    seed : int
        Seed of the run, in [0, 2**64).
    sessions : ndarray of uint64 [rows]
        Session of each row.
    positions : ndarray of int64 [rows]
        Position of the token inside its session, from 0.

    Raises
    ------
    ValueError
        If the seed or a position is out of range, or the arrays are not of one length.
    """

    seed: int
    sessions: npt.NDArray[np.uint64]
    positions: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        if not 0 <= self.seed < _UINT64_COUNT:
            raise ValueError(f"seed = {self.seed}: allowed are 0 to 2**64 - 1")
        sessions, positions = np.asarray(self.sessions), np.asarray(self.positions)
        if sessions.ndim != 1 or sessions.shape != positions.shape:
            raise ValueError(
                f"sessions has shape {sessions.shape} and positions {positions.shape}: "
                "both must be [rows]"
            )
        for name, values in (("sessions", sessions), ("positions", positions)):
            if values.size and not np.issubdtype(values.dtype, np.integer):
                raise ValueError(f"{name} has dtype {values.dtype}: allowed are integers")
            if np.issubdtype(values.dtype, np.signedinteger) and np.any(values < 0):
                raise ValueError(f"{name} holds {values.min()}: allowed are values from 0")
        if np.any(positions.astype(np.uint64) >= np.uint64(_POSITION_LIMIT)):
            raise ValueError(f"positions holds {positions.max()}: allowed are 0 to 2**63 - 1")
        object.__setattr__(self, "sessions", sessions.astype(np.uint64))
        object.__setattr__(self, "positions", positions.astype(np.int64))

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.sessions.shape[0])

    def select(self, rows: Tensor | npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> DrawKeys:
        """Keep some rows, given as a boolean mask or as indices [selected]."""
        index = np.asarray(rows)
        # What was checked once needs no check again.
        chosen = object.__new__(DrawKeys)
        object.__setattr__(chosen, "seed", self.seed)
        object.__setattr__(chosen, "sessions", self.sessions[index])
        object.__setattr__(chosen, "positions", self.positions[index])
        return chosen


def session_keys(
    client: int | npt.NDArray[np.int64], sessions: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint64]:
    """One number for a text of a device that no other text shares, uint64 [rows].

    Parameters
    ----------
    client : int or ndarray of int64 [rows]
        Number of the device, in [0, 2**32).
    sessions : ndarray of int64 [rows]
        The device's number for each text, in [0, 2**32).
    """
    return (np.asarray(client, np.uint64) << np.uint64(32)) | sessions.astype(np.uint64)


def uniform_matrix(keys: DrawKeys, purpose: Purpose, count: int) -> npt.NDArray[np.float64]:
    """Uniform numbers strictly inside (0, 1).

    Parameters
    ----------
    keys : DrawKeys
        One name per row.
    purpose : Purpose
        What the numbers are for.
    count : int
        Numbers per row. The first n of a longer draw equal a draw of n.

    Returns
    -------
    ndarray of float64 [rows, count]
        Bit-identical on every machine.

    Raises
    ------
    ValueError
        If `count` < 1.
    """
    if count < 1:
        raise ValueError(f"count = {count}: at least 1 number a row is needed")
    matrix = np.empty((keys.rows, count), dtype=np.float64)
    for row in range(keys.rows):  # rows are few, and each draws its whole vocabulary at once
        generator = np.random.Philox(
            key=np.array([keys.seed, keys.sessions[row]], dtype=np.uint64),
            counter=np.array([0, keys.positions[row], int(purpose), 0], dtype=np.uint64),
        )
        # 52 bits and a half: the largest value, 1 - 2**-53, is still a float64 below 1, which
        # 53 bits and a half would not be.
        matrix[row] = generator.random_raw(count) >> np.uint64(12)
    matrix += 0.5
    matrix *= 2.0**-52
    return matrix


def uniforms(keys: DrawKeys, purpose: Purpose, count: int) -> Tensor:
    """`uniform_matrix` as a tensor on the CPU."""
    import torch

    return torch.from_numpy(uniform_matrix(keys, purpose, count))


def portable_log(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Natural logarithm from additions, multiplications and divisions alone.

    Library logarithms differ in the last bit between processors, which would let device and server
    disagree on shared exponentials. IEEE 754 fixes the result of each operation used here.

    Parameters
    ----------
    values : ndarray of float64
        Positive, finite, normal numbers.

    Returns
    -------
    ndarray of float64
        ln(values), within 4 units in the last place of the exact value.
    """
    mantissa, exponent = np.frexp(values)
    small = mantissa < _SQRT_HALF
    mantissa *= np.where(small, 2.0, 1.0)
    power = exponent.astype(np.float64) - small
    numerator = mantissa - 1.0
    mantissa += 1.0
    ratio = np.divide(numerator, mantissa, out=numerator)
    square = np.multiply(ratio, ratio, out=mantissa)
    series = np.full_like(square, _SERIES[0])
    for coefficient in _SERIES[1:]:
        series *= square
        series += coefficient
    series *= ratio
    series *= 2.0
    series += power * _LN2_LOW
    series += power * _LN2_HIGH
    return series


def exponential_matrix(keys: DrawKeys, vocab: int) -> npt.NDArray[np.float64]:
    """Shared Exp(1) numbers, one per vocabulary entry, for the coupled verifier.

    Parameters
    ----------
    keys : DrawKeys
        One name per row.
    vocab : int
        Size of the vocabulary.

    Returns
    -------
    ndarray of float64 [rows, vocab]
        Positive and finite (between 1e-16 and 37), bit-identical on every machine.

    Raises
    ------
    ValueError
        If `vocab` < 1.
    """
    matrix = uniform_matrix(keys, Purpose.COUPLED, vocab)
    for row in matrix:  # a row at a time stays in the processor's cache
        row[:] = -portable_log(row)
    return matrix


def exponentials(keys: DrawKeys, vocab: int) -> Tensor:
    """`exponential_matrix` as a tensor on the CPU."""
    import torch

    return torch.from_numpy(exponential_matrix(keys, vocab))
