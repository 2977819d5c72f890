"""Writes the codes of :mod:`hlm.wire.bits`."""

import sys
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from hlm.arrays import IntArray
from hlm.wire.bits import (
    CONSTANT,
    DIFFERENCES,
    FEW,
    MAX_WIDTH,
    PLAIN,
    SIGNED_DIFFERENCES,
    BitArray,
    extremes,
    low_width,
)
from hlm.wire.errors import InvalidField

_ORDERS = np.arange(32, dtype=np.int64)


class BitWriter:
    """Collects values and returns them as bytes.

    Examples
    --------
    >>> writer = BitWriter()
    >>> writer.uint(5, 3)
    >>> writer.array(np.array([1, 2]), 4)
    >>> writer.getvalue().hex()
    'a240'
    """

    def __init__(self) -> None:
        self._parts: list[BitArray] = []
        self._pending = 0  # scalars gather in one Python integer until an array is written
        self._pending_bits = 0

    def uint(self, value: int, width: int) -> None:
        """Write one unsigned integer of ``width`` bits (any width)."""
        if value < 0 or value >> width:
            raise InvalidField(f"value {value} does not fit {width} bits")
        self._pending = (self._pending << width) | value
        self._pending_bits += width

    def flag(self, value: bool) -> None:
        """Write one bit."""
        self.uint(int(value), 1)

    def golomb(self, value: int, order: int) -> None:
        """Write one exponential Golomb code of a value >= 0."""
        if value < 0:
            raise InvalidField(f"value {value} must be >= 0")
        shifted = value + (1 << order)
        length = shifted.bit_length()
        self.uint(shifted, 2 * length - 1 - order)  # leading zeros are the prefix

    def sized(self, value: int) -> None:
        """Write an integer in [0, 2**64): four bits of byte count, then that many bytes."""
        size = (value.bit_length() + 7) // 8
        if value < 0 or size > 8:
            raise InvalidField(f"value {value} must be in [0, 2**64)")
        self.uint(size, 4)
        self.uint(value, 8 * size)

    def bits(self, bits: npt.ArrayLike) -> None:
        """Write an array of zeros and ones, one bit each."""
        octets = np.asarray(bits, dtype=np.uint8)
        if octets.size <= FEW:
            self.array(octets, 1)
            return
        self._flush()
        self._parts.append(octets)

    def array(self, values: npt.NDArray[np.integer], width: int) -> None:
        """Write every value at ``width`` bits (0 to 48); the reader has to know their number."""
        if not 0 <= width <= MAX_WIDTH:
            raise InvalidField(f"width {width} must be in [0, {MAX_WIDTH}]")
        if values.size == 0:
            return
        low, high = extremes(values)
        if low < 0 or high >> width:
            raise InvalidField(f"values in [{low}, {high}] do not fit {width} bits")
        if values.size <= FEW:
            run = 0
            for value in values.tolist():
                run = run << width | value
            self.uint(run, width * values.size)
            return
        container = 1 if width <= 8 else 2 if width <= 16 else 4 if width <= 32 else 8
        octets = np.ascontiguousarray(values, dtype=f">u{container}").view(np.uint8)
        expanded = np.unpackbits(octets).reshape(values.size, 8 * container)
        self.bits(expanded[:, 8 * container - width :].reshape(-1))

    def golomb_array(self, values: IntArray, order: int) -> None:
        """Write values in [0, 2**48) as exponential Golomb codes: all prefixes, then all rests."""
        if values.size == 0:
            return
        low, high = extremes(values)
        if low < 0 or high >> (MAX_WIDTH - 1):
            raise InvalidField(f"values must be in [0, 2**{MAX_WIDTH - 1})")
        if values.size <= FEW:
            self._few_golomb(values.tolist(), order)
            return
        shifted = values + (1 << order)
        widths = _bit_lengths(shifted) - 1
        self._unary(widths - order)
        self.ragged(shifted, widths)

    def _few_golomb(self, values: list[int], order: int) -> None:
        prefixes = rests = prefix_bits = rest_bits = 0
        for value in values:
            shifted = value + (1 << order)
            width = shifted.bit_length() - 1
            zeros = width - order
            prefixes = prefixes << (zeros + 1) | 1
            prefix_bits += zeros + 1
            rests = rests << width | (shifted - (1 << width))
            rest_bits += width
        self.uint(prefixes, prefix_bits)
        self.uint(rests, rest_bits)

    def ragged(self, values: IntArray, widths: IntArray) -> None:
        """Write the low ``widths[i]`` bits of each ``values[i]`` (0 to 48 bits)."""
        if values.size == 0:
            return
        run = np.zeros(int(widths.sum()), dtype=np.uint8)
        starts = np.cumsum(widths) - widths
        for bit in range(int(widths.max())):
            wide = widths > bit
            run[starts[wide] + bit] = (values[wide] >> (widths[wide] - 1 - bit)) & 1
        self.bits(run)

    def column(self, values: npt.ArrayLike, single_order: int = 2) -> None:
        """Write values in [0, 2**47), one a row; ``single_order`` is the order for a lone row."""
        column = np.asarray(values, dtype=np.int64).reshape(-1)
        if column.size <= 1:
            self.golomb_array(column, single_order)
            return
        low, high = extremes(column)
        if low == high:
            self.uint(CONSTANT, 2)
            self.golomb(low, single_order)
            return
        if column.size <= FEW:
            self._few(column.tolist())
            return
        differences = np.diff(column, prepend=0)
        candidates = [(PLAIN, column)]
        if int(differences.min()) >= 0:
            candidates.append((DIFFERENCES, differences))
        else:
            candidates.append((SIGNED_DIFFERENCES, _fold(differences)))
        best = min(((*_best_order(coded), form, coded) for form, coded in candidates), key=_cost)
        _, order, form, coded = best
        self.uint(form, 2)
        self.uint(order, 5)
        self.golomb_array(coded, order)

    def _few(self, column: list[int]) -> None:
        """`column` of a few values that are not all the same."""
        differences = [column[0], *(b - a for a, b in pairwise(column))]
        rising = min(differences) >= 0
        form = DIFFERENCES if rising else SIGNED_DIFFERENCES
        coded = differences if rising else [(d << 1) ^ (d >> 63) for d in differences]
        plain_bits, plain_order = _few_best_order(column)
        bits, order = _few_best_order(coded)
        if plain_bits <= bits:
            form, order, coded = PLAIN, plain_order, column
        self.uint(form, 2)
        self.uint(order, 5)
        self.golomb_array(np.array(coded, dtype=np.int64), order)

    def sorted_set(self, members: IntArray, universe: int) -> None:
        """Write strictly increasing members of [0, universe); the reader knows their number."""
        if members.size == 0:
            return
        if (
            int(members[0]) < 0
            or int(members[-1]) >= universe
            or bool(np.any(np.diff(members) < 1))
        ):
            raise InvalidField(f"set members must increase strictly within [0, {universe})")
        width = low_width(members.size, universe)
        self.array(members & ((1 << width) - 1), width)
        self._unary(np.diff(members >> width, prepend=0))

    def getvalue(self) -> bytes:
        """Everything written so far, the last byte padded with zeros."""
        if not self._parts:
            size = (self._pending_bits + 7) // 8
            return (self._pending << (8 * size - self._pending_bits)).to_bytes(size, "big")
        self._flush()
        return np.packbits(np.concatenate(self._parts)).tobytes()

    def _unary(self, zeros: IntArray) -> None:
        ends = np.cumsum(zeros + 1)
        run = np.zeros(int(ends[-1]), dtype=np.uint8)
        run[ends - 1] = 1
        self.bits(run)

    def _flush(self) -> None:
        if self._pending_bits:
            size = (self._pending_bits + 7) // 8
            octets = np.frombuffer(self._pending.to_bytes(size, "big"), dtype=np.uint8)
            self._parts.append(np.unpackbits(octets)[8 * size - self._pending_bits :])
            self._pending = self._pending_bits = 0


def _bit_lengths(values: IntArray) -> IntArray:
    # frexp is exact for integers below 2**53, which MAX_WIDTH guarantees.
    return np.frexp(values.astype(np.float64))[1].astype(np.int64)


def _fold(signed: IntArray) -> IntArray:
    # 0, -1, 1, -2, ... -> 0, 1, 2, 3, ...
    return (signed << 1) ^ (signed >> 63)


def _best_order(values: IntArray) -> tuple[int, int]:
    distinct, counts = np.unique(values, return_counts=True)
    prefixes = _bit_lengths(distinct + (1 << _ORDERS[:, None])) - 1 - _ORDERS[:, None]
    totals = (2 * prefixes + 1 + _ORDERS[:, None]) @ counts
    order = int(totals.argmin())
    return int(totals[order]), order


def _few_best_order(values: list[int]) -> tuple[int, int]:
    """`_best_order` for a few plain integers."""
    best = (sys.maxsize, 0)
    # From the order at which no value has a prefix, one more only adds a bit to each.
    for order in range(min(max(values).bit_length() + 1, len(_ORDERS))):
        unit = 1 << order
        bits = sum(2 * (value + unit).bit_length() for value in values)
        best = min(best, (bits - len(values) * (1 + order), order))
    return best


def _cost(candidate: tuple[int, int, int, IntArray]) -> int:
    return candidate[0]
