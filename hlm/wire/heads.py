"""What messages of every kind begin with, and the sizes that they may announce."""

from hlm.wire.bit_reader import BitReader
from hlm.wire.bit_writer import BitWriter
from hlm.wire.errors import OversizedMessage, UnsupportedVersion
from hlm.wire.rows import Limits


def headed(kind: int, version: int) -> BitWriter:
    """A message whose first byte is written: ``kind`` in the high half, ``version`` in the low."""
    writer = BitWriter()
    writer.uint(kind << 4 | version, 8)
    return writer


def opened(payload: bytes, kind: int, version: int, limits: Limits) -> BitReader:
    """A message whose first byte is read.

    Raises
    ------
    OversizedMessage
        If it has more bytes than ``limits`` allow.
    UnsupportedVersion
        Unless it is of this kind and version.
    """
    bounded(len(payload), limits.max_bytes, "bytes")
    reader = BitReader(payload)
    first, expected = reader.uint(8), kind << 4 | version
    if first != expected:
        raise UnsupportedVersion(
            f"first byte 0x{first:02x}; expected 0x{expected:02x} "
            f"(kind {kind:#x}, version {version})"
        )
    return reader


def bounded(value: int, limit: int, name: str) -> int:
    """``value``, the number of ``name`` that a message announces; it must not be above ``limit``.

    Raises
    ------
    OversizedMessage
        If it is.
    """
    if value > limit:
        raise OversizedMessage(f"{name}: {value} announced, at most {limit} are allowed")
    return value
