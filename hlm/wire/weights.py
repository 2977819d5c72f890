"""Probabilities as integers on the wire: dense weights, sparse weights, lone probabilities."""

import numpy as np

from hlm.arrays import IntArray
from hlm.wire.bit_reader import BitReader
from hlm.wire.bit_writer import BitWriter
from hlm.wire.bits import bits_needed
from hlm.wire.errors import InvalidField
from hlm.wire.heads import bounded
from hlm.wire.rows import SCALAR_BITS, Limits


def write_probabilities(writer: BitWriter, weights: IntArray) -> None:
    """Write probabilities in units of 2**-16, each in [1, 2**16], at 16 bits."""
    # 0 cannot occur (a drawn token has a probability), so one less makes room for 2**16.
    writer.array(weights - 1, SCALAR_BITS)


def read_probabilities(reader: BitReader, count: int) -> IntArray:
    """Read what :func:`write_probabilities` wrote."""
    return reader.array(count, SCALAR_BITS) + 1


def write_dense(writer: BitWriter, weights: IntArray, counts: IntArray, bits: int) -> None:
    """Write rows of weights in [0, 2**bits] at ``bits`` bits each; the reader knows the counts.

    A weight of ``2**bits`` does not fit, but then it is alone: such a row is sent as a place.
    """
    ends = np.cumsum(counts)
    points = np.flatnonzero(weights == 1 << bits)
    owners = np.searchsorted(ends, points, "right")
    lone = np.zeros(len(counts), np.bool_)
    lone[owners] = True
    writer.flag(bool(points.size))
    if points.size:
        writer.bits(lone)
        places = points - (ends - counts)[owners]
        for place, size in zip(places.tolist(), counts[owners].tolist(), strict=True):
            writer.uint(place, bits_needed(size))
        weights = weights[np.repeat(~lone, counts)]
    writer.array(weights, bits)


def read_dense(reader: BitReader, counts: IntArray, bits: int) -> IntArray:
    """Read the weights of all rows as written by :func:`write_dense`."""
    if not reader.flag():
        return reader.array(int(counts.sum()), bits)
    lone = reader.bits(len(counts)) > 0
    sizes = counts[lone]
    places = np.array([reader.uint(bits_needed(size)) for size in sizes.tolist()], np.int64)
    if bool((places >= sizes).any()):
        raise InvalidField("a place past the end of its weights")
    rest = reader.array(int(counts[~lone].sum()), bits)
    weights = np.zeros(int(counts.sum()), np.int64)
    weights[np.repeat(~lone, counts)] = rest
    weights[(np.cumsum(counts) - counts)[lone] + places] = 1 << bits
    return weights


def write_supports(writer: BitWriter, support: IntArray, counts: IntArray, vocab: int) -> None:
    """Write at least one id of every row, as one set of ``row * vocab + id`` over all rows."""
    offsets = np.repeat(np.arange(len(counts)) * vocab, counts)
    writer.golomb(support.size - len(counts), 4)
    writer.sorted_set(support + offsets, len(counts) * vocab)


def read_supports(
    reader: BitReader, rows: int, vocab: int, limits: Limits
) -> tuple[IntArray, IntArray]:
    """Read the ids of all rows, and how many each has, as written by :func:`write_supports`."""
    total = bounded(reader.golomb(4) + rows, limits.max_weights, "weights")
    members = reader.sorted_set(total, rows * vocab)
    owners = members // vocab
    counts = np.bincount(owners, minlength=rows)
    if not counts.all():
        raise InvalidField("every row with a draft needs at least one supported token")
    return members - owners * vocab, counts
