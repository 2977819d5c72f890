"""Bits in, bits out: the four codes every message is made of.

:class:`~hlm.wire.bit_writer.BitWriter` writes them, :class:`~hlm.wire.bit_reader.BitReader` reads.

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

import numpy as np
import numpy.typing as npt

BitArray = npt.NDArray[np.uint8]

MAX_WIDTH = 48
"""Most bits of one value in a fixed or Golomb coded array; float64 is exact up to here."""

PLAIN, DIFFERENCES, SIGNED_DIFFERENCES, CONSTANT = range(4)
"""Forms of a column, by the number in its header."""

FEW = 32
"""Up to so many values plain integers are faster than arrays: most columns have a row or ten."""


def bits_needed(count: int) -> int:
    """Width that tells ``count`` different values apart: ``ceil(log2(count))``, at least 0."""
    return max(count - 1, 0).bit_length()


def extremes(values: npt.NDArray[np.integer]) -> tuple[int, int]:
    """Smallest and largest of one value or more."""
    if values.size <= FEW:
        plain = values.tolist()
        return min(plain), max(plain)
    return int(values.min()), int(values.max())


def low_width(count: int, universe: int) -> int:
    """Low bits that :meth:`BitWriter.sorted_set` sends as they are."""
    return max((universe // count).bit_length() - 1, 0)
