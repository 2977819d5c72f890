"""A shorter code for token ids, from how often each token occurs in some text.

Both sides build the same canonical Huffman code from the same counts; a request names it by its
fingerprint. Without one, ids take ``ceil(log2 V)`` bits.
"""

import heapq
import zlib
from bisect import bisect_right

import numpy as np
import numpy.typing as npt

from hlm.wire.bit_reader import BitReader
from hlm.wire.bit_writer import BitWriter
from hlm.wire.bits import IntArray
from hlm.wire.errors import TruncatedMessage

FINGERPRINT_BITS = 16


class TokenCode:
    """Prefix code in which frequent tokens are short (Huffman 1952, canonical form).

    Parameters
    ----------
    counts
        int64 [vocab], how often each token occurs in text like that to be sent, from 0; vocab at
        least 2. Counts are doubled and one is added to each, so that every token has a code.

    Attributes
    ----------
    lengths : int64 [vocab]
        Bits of each token.
    fingerprint : int
        16 bits of a checksum of the lengths, which determine the code.

    Raises
    ------
    ValueError
        If counts are no such vector, or sum to more than 2**40.
    """

    def __init__(self, counts: npt.ArrayLike) -> None:
        known = np.asarray(counts)
        if known.ndim != 1 or known.size < 2 or not np.issubdtype(known.dtype, np.integer):
            raise ValueError(f"counts: {known.dtype} {known.shape} must be integers [vocab >= 2]")
        if int(known.min()) < 0 or float(known.sum(dtype=np.float64)) > 2.0**40:
            raise ValueError("counts must be from 0 and sum to at most 2**40")
        self.lengths = _huffman_lengths(2 * known.astype(np.int64) + 1)
        self.fingerprint = zlib.crc32(self.lengths.astype(np.uint8).tobytes()) & 0xFFFF
        # Canonical: codes of one length are consecutive, in the order of their tokens.
        self._order = np.lexsort((np.arange(known.size), self.lengths))
        self._longest = int(self.lengths.max())
        steps = 1 << (self._longest - self.lengths[self._order])
        aligned = np.cumsum(steps) - steps
        self._codes = np.empty_like(aligned)
        self._codes[self._order] = aligned >> (self._longest - self.lengths[self._order])
        distinct, first = np.unique(self.lengths[self._order], return_index=True)
        self._classes = list(zip(distinct.tolist(), first.tolist(), strict=True))
        self._starts = aligned[first].tolist()

    @property
    def vocab(self) -> int:
        """Number of tokens that have a code."""
        return self.lengths.size

    def bits(self, tokens: IntArray) -> int:
        """Bits that ``tokens`` (ids below :attr:`vocab`) take."""
        return int(self.lengths[tokens].sum())

    def write(self, writer: BitWriter, tokens: IntArray) -> None:
        """Write ``tokens``, ids below :attr:`vocab`."""
        writer.ragged(self._codes[tokens], self.lengths[tokens])

    def read(self, reader: BitReader, count: int) -> IntArray:
        """Read ``count`` tokens, a number the caller has bounded."""
        if count * self._classes[0][0] > reader.remaining:
            raise TruncatedMessage(f"{count} tokens announced, {reader.remaining} bits left")
        places = np.empty(count, dtype=np.int64)
        for index in range(count):
            window = reader.peek(self._longest)
            which = bisect_right(self._starts, window) - 1
            length, first = self._classes[which]
            places[index] = first + ((window - self._starts[which]) >> (self._longest - length))
            reader.skip(length)
        return self._order[places]


def _huffman_lengths(weights: IntArray) -> IntArray:
    # Ties go to the lower number, so that every machine finds the same lengths.
    size = weights.size
    heap = [(weight, node) for node, weight in enumerate(weights.tolist())]
    heapq.heapify(heap)
    parents = np.zeros(2 * size - 1, dtype=np.int64)
    for node in range(size, 2 * size - 1):
        light, heavy = heapq.heappop(heap), heapq.heappop(heap)
        parents[light[1]] = parents[heavy[1]] = node
        heapq.heappush(heap, (light[0] + heavy[0], node))
    depths = np.zeros(2 * size - 1, dtype=np.int64)
    for node in range(2 * size - 3, -1, -1):
        depths[node] = depths[parents[node]] + 1
    return depths[:size]
