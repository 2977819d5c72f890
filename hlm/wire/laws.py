"""Probability laws as integers on the wire: dense weights, sparse weights, lone probabilities."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hlm.arrays import IntArray
from hlm.wire.bit_reader import BitReader
from hlm.wire.bit_writer import BitWriter
from hlm.wire.bits import bits_needed
from hlm.wire.errors import InvalidField, OversizedMessage
from hlm.wire.messages import SCALAR_BITS, Limits


def write_probabilities(writer: BitWriter, weights: IntArray) -> None:
    """Write probabilities in units of 2**-16, each in [1, 2**16], at 16 bits."""
    # 0 cannot occur (a drawn token has a probability), so one less makes room for 2**16.
    writer.array(weights - 1, SCALAR_BITS)


def read_probabilities(reader: BitReader, count: int) -> IntArray:
    """Read what :func:`write_probabilities` wrote."""
    return reader.array(count, SCALAR_BITS) + 1


def write_dense(writer: BitWriter, laws: Sequence[npt.NDArray[np.integer]], bits: int) -> None:
    """Write weights in [0, 2**bits] at ``bits`` bits each; the reader knows every length.

    A weight of ``2**bits`` does not fit, but then it is alone: such a law is sent as a place.
    """
    whole = 1 << bits
    lone = [bool(np.any(law == whole)) for law in laws]
    writer.flag(any(lone))
    if any(lone):
        writer.bits(lone)
    for law, is_lone in zip(laws, lone, strict=True):
        if is_lone:
            writer.uint(int(law.argmax()), bits_needed(law.size))
    rest = [law for law, is_lone in zip(laws, lone, strict=True) if not is_lone]
    if rest:
        writer.array(np.concatenate(rest), bits)


def read_dense(reader: BitReader, sizes: Sequence[int], bits: int) -> list[IntArray]:
    """Read laws of the given sizes as written by :func:`write_dense`."""
    lone = [False] * len(sizes)
    if reader.flag():
        lone = [bool(bit) for bit in reader.bits(len(sizes))]
    places = [
        reader.uint(bits_needed(size)) if is_lone else 0
        for size, is_lone in zip(sizes, lone, strict=True)
    ]
    total = sum(size for size, is_lone in zip(sizes, lone, strict=True) if not is_lone)
    rest = reader.array(total, bits)
    laws: list[IntArray] = []
    used = 0
    for size, is_lone, place in zip(sizes, lone, places, strict=True):
        if not is_lone:
            laws.append(rest[used : used + size])
            used += size
            continue
        if place >= size:
            raise InvalidField(f"place {place} in a law of {size} entries")
        law = np.zeros(size, dtype=np.int64)
        law[place] = 1 << bits
        laws.append(law)
    return laws


def write_supports(writer: BitWriter, supports: Sequence[IntArray], vocab: int) -> None:
    """Write at least one id of every row, as one set of ``row * vocab + id`` over all rows."""
    sizes = np.array([support.size for support in supports], dtype=np.int64)
    offsets = np.repeat(np.arange(len(supports), dtype=np.int64) * vocab, sizes)
    writer.golomb(int(sizes.sum()) - len(supports), 4)
    writer.sorted_set(np.concatenate(supports) + offsets, len(supports) * vocab)


def read_supports(reader: BitReader, rows: int, vocab: int, limits: Limits) -> list[IntArray]:
    """Read the ids of ``rows`` rows as written by :func:`write_supports`."""
    total = reader.golomb(4) + rows
    if total > limits.max_weights:
        raise OversizedMessage(f"{total} weights; at most {limits.max_weights} are allowed")
    members = reader.sorted_set(total, rows * vocab)
    edges = np.searchsorted(members, np.arange(1, rows, dtype=np.int64) * vocab)
    supports = [part - row * vocab for row, part in enumerate(np.split(members, edges))]
    if any(support.size == 0 for support in supports):
        raise InvalidField("every row with a draft needs at least one supported token")
    return supports
