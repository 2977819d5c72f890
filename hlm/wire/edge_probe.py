"""Messages by which a device learns whether peers meet the contexts that it meets.

A :class:`EdgeProbe` shows a few new fingerprints (`hlm.peers.fingerprints`); the reply
says of each one the edge server holds of this device whether another device has shown it too.
Both together take some 28 bytes with eight new fingerprints and 6 with none. Layouts are in
``docs/edge.md``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hlm.arrays import BoolArray, IntArray
from hlm.peers.fingerprints import FINGERPRINTS
from hlm.wire.bit_reader import BitReader
from hlm.wire.edge import EDGE_VERSION
from hlm.wire.errors import InvalidField
from hlm.wire.heads import bounded, headed, opened
from hlm.wire.rows import Limits

EDGE_PROBE_KIND = 0xE
EDGE_COMMON_KIND = 0xF
MOST_FINGERPRINTS = 64
"""Most fingerprints in one message, and most that an edge server holds of one device."""

_ORDER = 18  # of the Golomb code of a lone fingerprint
_LIMITS = Limits()


@dataclass(frozen=True, eq=False)
class EdgeProbe:
    """One probe from a device, or from a neighbouring edge server on behalf of one.

    Attributes
    ----------
    client : int
        Number of the device; of the edge server if `between`.
    prints : ndarray of int64 [n]
        Fingerprints, strictly increasing in [0, `FINGERPRINTS`); those not shown before, or if
        `between` all that are asked about.
    between : bool
        Asked by a neighbouring edge server, which shows nothing of its own.
    """

    client: int
    prints: IntArray
    between: bool = False


def is_probe(payload: bytes) -> bool:
    """Whether a message to an edge server is a probe, by its first byte."""
    return payload[:1] == bytes([EDGE_PROBE_KIND << 4 | EDGE_VERSION])


def encode_probe(probe: EdgeProbe) -> bytes:
    """Bytes of a probe.

    Raises
    ------
    InvalidField
        If the fingerprints are too many, out of range or out of order.
    """
    _check(probe)
    writer = headed(EDGE_PROBE_KIND, EDGE_VERSION)
    writer.flag(probe.between)
    writer.sized(probe.client)
    writer.golomb(len(probe.prints), 2)
    writer.column(probe.prints, _ORDER)
    return writer.getvalue()


def decode_probe(payload: bytes, limits: Limits = _LIMITS) -> EdgeProbe:
    """The probe that `payload` holds.

    Raises
    ------
    WireError
        Whatever is wrong with the bytes; nothing else.
    """
    reader = opened(payload, EDGE_PROBE_KIND, EDGE_VERSION, limits)
    between, client, count = reader.flag(), reader.sized(), _count(reader)
    probe = EdgeProbe(client, reader.column(count, _ORDER), between)
    reader.finish()
    _check(probe)
    return probe


def encode_common(common: BoolArray) -> bytes:
    """Bytes of the reply: for each fingerprint held (bool [n]) whether others show it too."""
    writer = headed(EDGE_COMMON_KIND, EDGE_VERSION)
    writer.golomb(len(common), 2)
    writer.bits(common)
    return writer.getvalue()


def decode_common(payload: bytes, limits: Limits = _LIMITS) -> BoolArray:
    """The flags that a reply holds, bool [n].

    Raises
    ------
    WireError
        Whatever is wrong with the bytes; nothing else.
    """
    reader = opened(payload, EDGE_COMMON_KIND, EDGE_VERSION, limits)
    common = reader.bits(_count(reader)).astype(np.bool_)
    reader.finish()
    return common


def _check(probe: EdgeProbe) -> None:
    prints = probe.prints
    if prints.ndim != 1 or len(prints) > MOST_FINGERPRINTS:
        raise InvalidField(
            f"prints have shape {prints.shape}; at most {MOST_FINGERPRINTS} are allowed"
        )
    if len(prints) and (
        not 0 <= int(prints[0]) <= int(prints[-1]) < FINGERPRINTS or (np.diff(prints) <= 0).any()
    ):
        raise InvalidField(f"prints must increase strictly within [0, {FINGERPRINTS})")


def _count(reader: BitReader) -> int:
    return bounded(reader.golomb(2), MOST_FINGERPRINTS, "fingerprints")
