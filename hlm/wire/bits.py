"""Bits in, bits out: the four codes every message is made of.

All of them write the most significant bit first, and none is aligned to bytes.

fixed
    Unsigned integers of a known width (:meth:`BitWriter.uint`, :meth:`BitWriter.array`).
exponential Golomb of order ``k``
    A value ``v`` becomes ``q = v + 2**k``; if ``q`` has ``k + 1 + p`` bits, ``p`` zeros, a one and
    the ``k + p`` low bits of ``q``. Small values cost ``k + 1`` bits and no value is too large
    (:meth:`BitWriter.golomb`; a varint whose grain is the bit rather than the byte).
column
    Many such values at once: every run of zeros first, then every group of low bits, so that
    numpy can code them without a Python loop over values. A short header carries the order
    and whether values or their differences are sent, whichever is fewest bits
    (:meth:`BitWriter.column`).
set
    ``count`` strictly increasing integers below ``universe`` (Elias 1974, Fano 1971): their low
    ``floor(log2(universe / count))`` bits as they are, their high parts as a unary run. At most
    two bits an entry above ``log2(universe / count)``, within about half a bit of the entropy of
    a random set (:meth:`BitWriter.sorted_set`).

Readers check that enough bits are left *before* they allocate, so what a message makes the reader
allocate is bounded by a constant times the message's own length (about 80 bytes for each bit of a
column, fewer for the rest).
"""

import sys
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from hlm.wire.errors import InvalidField, TrailingData, TruncatedMessage

IntArray = npt.NDArray[np.int64]
BitArray = npt.NDArray[np.uint8]

MAX_WIDTH = 48
"""Most bits of one value in a fixed or Golomb coded array; float64 is exact up to here."""

_PLAIN, _DIFFERENCES, _SIGNED_DIFFERENCES, _CONSTANT = range(4)
_ORDERS = np.arange(32, dtype=np.int64)
_FEW = 32
"""Up to so many values plain integers are faster than arrays: most columns have a row or ten."""


def bits_needed(count: int) -> int:
    """Width that tells ``count`` different values apart: ``ceil(log2(count))``, at least 0."""
    return max(count - 1, 0).bit_length()


def _bit_lengths(values: IntArray) -> IntArray:
    # frexp is exact for integers below 2**53, which MAX_WIDTH guarantees.
    return np.frexp(values.astype(np.float64))[1].astype(np.int64)


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
        self._flush()
        self._parts.append(np.asarray(bits).astype(np.uint8))

    def array(self, values: npt.NDArray[np.integer], width: int) -> None:
        """Write every value at ``width`` bits (0 to 48); the reader has to know their number."""
        if not 0 <= width <= MAX_WIDTH:
            raise InvalidField(f"width {width} must be in [0, {MAX_WIDTH}]")
        if values.size == 0:
            return
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >> width:
            raise InvalidField(f"values in [{low}, {high}] do not fit {width} bits")
        if values.size <= _FEW:
            run = 0
            for value in values.astype(np.int64).tolist():
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
        if int(values.min()) < 0 or int(values.max()) >> (MAX_WIDTH - 1):
            raise InvalidField(f"values must be in [0, 2**{MAX_WIDTH - 1})")
        shifted = values + (1 << order)
        if values.size <= _FEW:
            self._few_golomb(shifted.tolist(), order)
            return
        widths = _bit_lengths(shifted) - 1
        self._unary(widths - order)
        self.ragged(shifted, widths)

    def _few_golomb(self, shifted: list[int], order: int) -> None:
        prefixes = rests = prefix_bits = rest_bits = 0
        for value in shifted:
            width = value.bit_length() - 1
            zeros = width - order
            prefixes = prefixes << (zeros + 1) | 1
            prefix_bits += zeros + 1
            rests = rests << width | (value - (1 << width))
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
        if int(column.min()) == int(column.max()):
            self.uint(_CONSTANT, 2)
            self.golomb(int(column[0]), single_order)
            return
        if column.size <= _FEW:
            self._few(column.tolist())
            return
        differences = np.diff(column, prepend=0)
        candidates = [(_PLAIN, column)]
        if int(differences.min()) >= 0:
            candidates.append((_DIFFERENCES, differences))
        else:
            candidates.append((_SIGNED_DIFFERENCES, _fold(differences)))
        best = min(((*_best_order(coded), form, coded) for form, coded in candidates), key=_cost)
        _, order, form, coded = best
        self.uint(form, 2)
        self.uint(order, 5)
        self.golomb_array(coded, order)

    def _few(self, column: list[int]) -> None:
        """`column` of a few values that are not all the same."""
        differences = [column[0], *(b - a for a, b in pairwise(column))]
        rising = min(differences) >= 0
        form = _DIFFERENCES if rising else _SIGNED_DIFFERENCES
        coded = differences if rising else [(d << 1) ^ (d >> 63) for d in differences]
        plain_bits, plain_order = _few_best_order(column)
        bits, order = _few_best_order(coded)
        if plain_bits <= bits:
            form, order, coded = _PLAIN, plain_order, column
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
        low_width = _low_width(members.size, universe)
        self.array(members & ((1 << low_width) - 1), low_width)
        self._unary(np.diff(members >> low_width, prepend=0))

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


class BitReader:
    """Reads what :class:`BitWriter` wrote, in the same order.

    Raises
    ------
    TruncatedMessage
        If a value goes past the end of the bytes, before anything is allocated for it.
    InvalidField
        If a code is malformed.
    """

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._position = 0
        self._end = 8 * len(payload)

    @property
    def remaining(self) -> int:
        """Bits not read yet."""
        return self._end - self._position

    def uint(self, width: int) -> int:
        """Read one unsigned integer of ``width`` bits."""
        self._require(width)
        stop = self._position + width
        window = self._payload[self._position >> 3 : (stop + 7) >> 3]
        self._position = stop
        return (int.from_bytes(window, "big") >> (-stop & 7)) & ((1 << width) - 1)

    def peek(self, width: int) -> int:
        """The next ``width`` bits as :meth:`uint` reads them, without reading on.

        Past the end there are zeros.
        """
        stop = self._position + width
        window = self._payload[self._position >> 3 : (stop + 7) >> 3]
        missing = ((stop + 7) >> 3) - (self._position >> 3) - len(window)
        value = int.from_bytes(window, "big") << (8 * missing)
        return (value >> (-stop & 7)) & ((1 << width) - 1)

    def skip(self, width: int) -> None:
        """Read on without looking."""
        self._require(width)
        self._position += width

    def flag(self) -> bool:
        """Read one bit."""
        return self.uint(1) == 1

    def golomb(self, order: int) -> int:
        """Read one exponential Golomb code (a value below 2**48)."""
        prefix = 0
        while not self.uint(1):
            prefix += 1
            if prefix + order > MAX_WIDTH:
                raise InvalidField(f"a number is longer than {MAX_WIDTH} bits")
        width = prefix + order
        return (1 << width) + self.uint(width) - (1 << order)

    def sized(self) -> int:
        """Read an integer in [0, 2**64)."""
        size = self.uint(4)
        if size > 8:
            raise InvalidField(f"an integer of {size} bytes; at most 8 are allowed")
        return self.uint(8 * size)

    def bits(self, count: int) -> BitArray:
        """Read ``count`` bits as an array of zeros and ones."""
        self._require(count)
        bits = self._peek(count)
        self._position += count
        return bits

    def array(self, count: int, width: int) -> IntArray:
        """Read ``count`` values of ``width`` bits (0 to 48) as int64."""
        if width == 0 or count == 0:
            return np.zeros(count, dtype=np.int64)
        if width in (8, 16, 32):
            return self._octets(count * width // 8).view(f">u{width // 8}").astype(np.int64)
        container = 1 if width <= 8 else 2 if width <= 16 else 4 if width <= 32 else 8
        bits = self.bits(count * width).reshape(count, width)
        padded = np.zeros((count, 8 * container), dtype=np.uint8)
        padded[:, 8 * container - width :] = bits
        return np.packbits(padded, axis=1).reshape(-1).view(f">u{container}").astype(np.int64)

    def golomb_array(self, count: int, order: int) -> IntArray:
        """Read ``count`` exponential Golomb codes as int64."""
        if count == 0:
            return np.zeros(0, dtype=np.int64)
        if count <= _FEW:
            return np.array(self._few_golomb(count, order), dtype=np.int64)
        prefixes = self._unary(count, count * (MAX_WIDTH + 1))
        if int(prefixes.max()) + order >= MAX_WIDTH:
            raise InvalidField(f"a number is longer than {MAX_WIDTH} bits")
        widths = prefixes + order
        rest = self.bits(int(widths.sum()))
        starts = np.cumsum(widths) - widths
        shifted = np.ones(count, dtype=np.int64)
        for bit in range(int(widths.max())):
            wide = widths > bit
            shifted[wide] = (shifted[wide] << 1) | rest[starts[wide] + bit]
        return shifted - (1 << order)

    def _few_golomb(self, count: int, order: int) -> list[int]:
        self._require(count)
        longest = count * (MAX_WIDTH + 1)
        stretch = min(longest, self.remaining)
        run = format(self.peek(stretch), f"0{stretch}b")
        widths = []
        place = -1
        for _ in range(count):
            before, place = place, run.find("1", place + 1)
            if place < 0:
                if stretch == longest:
                    raise InvalidField(f"{count} numbers take more than {longest} bits of prefix")
                raise TruncatedMessage(f"a run of {count} numbers does not end in the message")
            widths.append(place - before - 1 + order)
        if max(widths) >= MAX_WIDTH:
            raise InvalidField(f"a number is longer than {MAX_WIDTH} bits")
        self._position += place + 1
        unit = 1 << order
        return [(1 << width) + self.uint(width) - unit for width in widths]

    def column(self, count: int, single_order: int = 2) -> IntArray:
        """Read a column of ``count`` values; the caller has bounded ``count``."""
        if count <= 1:
            return self.golomb_array(count, single_order)
        form = self.uint(2)
        if form == _CONSTANT:
            return np.full(count, self.golomb(single_order), dtype=np.int64)
        coded = self.golomb_array(count, self.uint(5))
        if form == _PLAIN:
            return coded
        if form == _SIGNED_DIFFERENCES:
            coded = (coded >> 1) ^ -(coded & 1)
        values = np.cumsum(coded)  # |sum| <= rows * 2**48: no overflow below 2**15 rows
        if int(values.min()) < 0 or int(values.max()) >> MAX_WIDTH:
            raise InvalidField("the differences of a column leave [0, 2**48)")
        return values

    def sorted_set(self, count: int, universe: int) -> IntArray:
        """Read ``count`` strictly increasing members of [0, universe)."""
        if count == 0:
            return np.zeros(0, dtype=np.int64)
        if count > universe:
            raise InvalidField(f"a set of {count} members in a universe of {universe}")
        low_width = _low_width(count, universe)
        low = self.array(count, low_width)
        high = np.cumsum(self._unary(count, count + (universe >> low_width) + 1))
        members = (high << low_width) | low
        if int(members[-1]) >= universe or bool(np.any(np.diff(members) < 1)):
            raise InvalidField(f"set members must increase strictly within [0, {universe})")
        return members

    def finish(self) -> None:
        """Raise :class:`TrailingData` unless only the zero padding of the last byte is left."""
        if self.remaining >= 8 or (self.remaining and self.uint(self.remaining)):
            raise TrailingData(f"{self.remaining} bits follow the end of the message")

    def _octets(self, count: int) -> npt.NDArray[np.uint8]:
        # Whole octets need no unpacking: what straddles two bytes is shifted together.
        self._require(8 * count)
        first, offset = self._position >> 3, self._position & 7
        size = count + (offset > 0)
        octets = np.frombuffer(self._payload, dtype=np.uint8, count=size, offset=first)
        self._position += 8 * count
        if not offset:
            return octets
        return (octets[:-1] << np.uint8(offset)) | (octets[1:] >> np.uint8(8 - offset))

    def _peek(self, count: int) -> BitArray:
        first, stop = self._position >> 3, (self._position + count + 7) >> 3
        octets = np.frombuffer(self._payload, dtype=np.uint8, count=stop - first, offset=first)
        offset = self._position & 7
        return np.unpackbits(octets)[offset : offset + count]

    def _require(self, count: int) -> None:
        if count > self.remaining:
            raise TruncatedMessage(f"{count} more bits announced, {self.remaining} left")

    def _unary(self, count: int, longest: int) -> IntArray:
        # The run's length is not known: look at a likely stretch first, then at twice as much.
        self._require(count)
        last = min(longest, self.remaining)
        stretch = min(3 * count + 64, last)
        while True:
            ones = np.flatnonzero(self._peek(stretch))
            if ones.size >= count:
                break
            if stretch == longest:
                raise InvalidField(f"{count} numbers take more than {longest} bits of prefix")
            if stretch == last:
                raise TruncatedMessage(f"a run of {count} numbers does not end in the message")
            stretch = min(2 * stretch, last)
        self._position += int(ones[count - 1]) + 1
        return np.diff(ones[:count], prepend=-1) - 1


def _low_width(count: int, universe: int) -> int:
    return max((universe // count).bit_length() - 1, 0)


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
