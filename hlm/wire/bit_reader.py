"""Reads the codes of :mod:`hlm.wire.bits`."""

import numpy as np
import numpy.typing as npt

from hlm.arrays import IntArray
from hlm.wire.bits import CONSTANT, FEW, MAX_WIDTH, PLAIN, SIGNED_DIFFERENCES, BitArray, low_width
from hlm.wire.errors import InvalidField, TrailingData, TruncatedMessage


class BitReader:
    """Reads what :class:`~hlm.wire.bit_writer.BitWriter` wrote, in the same order.

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
        stop = self._position + width
        if stop > self._end:
            self._require(width)
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

    def flag(self) -> bool:
        """Read one bit."""
        place = self._position
        if place == self._end:
            self._require(1)
        self._position = place + 1
        return bool(self._payload[place >> 3] >> (~place & 7) & 1)

    def golomb(self, order: int) -> int:
        """Read one exponential Golomb code (a value below 2**48)."""
        longest = MAX_WIDTH + 1 - order
        prefix = longest - self.peek(longest).bit_length()
        if prefix == longest:
            self._require(longest)
            raise InvalidField(f"a number is longer than {MAX_WIDTH} bits")
        return self.uint(2 * prefix + 1 + order) - (1 << order)

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
        if count <= FEW:
            run, mask = self.uint(count * width), (1 << width) - 1
            places = range((count - 1) * width, -1, -width)
            return np.array([run >> place & mask for place in places], dtype=np.int64)
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
        if count <= FEW:
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
        if count == 1:
            # As in a run of one all of it is prefix, then rest.
            return np.array([self.golomb(single_order)], dtype=np.int64)
        if count == 0:
            return np.zeros(0, dtype=np.int64)
        form = self.uint(2)
        if form == CONSTANT:
            return np.full(count, self.golomb(single_order), dtype=np.int64)
        coded = self.golomb_array(count, self.uint(5))
        if form == PLAIN:
            return coded
        if form == SIGNED_DIFFERENCES:
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
        width = low_width(count, universe)
        low = self.array(count, width)
        high = np.cumsum(self._unary(count, count + (universe >> width) + 1))
        members = (high << width) | low
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
