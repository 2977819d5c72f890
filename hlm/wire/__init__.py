"""Byte-exact messages between devices and the large model's server (layout: ``docs/wire.md``).

What a report calls bytes are the lengths of these messages. A device encodes a :class:`Request`,
the server decodes it, answers with a :class:`Reply`, and the device decodes that with its own
request at hand. Everything that can be wrong with the bytes is a :class:`WireError`.
"""

from hlm.verifiers import Shape
from hlm.wire.bit_reader import BitReader
from hlm.wire.bit_writer import BitWriter
from hlm.wire.bits import bits_needed
from hlm.wire.columns import Columns, column, entries
from hlm.wire.errors import (
    InvalidField,
    OversizedMessage,
    TrailingData,
    TruncatedMessage,
    UnsupportedVersion,
    WireError,
)
from hlm.wire.messages import Reply, Request, Status
from hlm.wire.prefix import IDENTITY_BYTES, PrefixDigest, joint_digest
from hlm.wire.reply import decode_reply, encode_reply
from hlm.wire.request import decode_request, encode_request
from hlm.wire.rows import NO_TOKEN, Limits, Rows, with_blocks

__all__ = [
    "IDENTITY_BYTES",
    "NO_TOKEN",
    "BitReader",
    "BitWriter",
    "Columns",
    "InvalidField",
    "Limits",
    "OversizedMessage",
    "PrefixDigest",
    "Reply",
    "Request",
    "Rows",
    "Shape",
    "Status",
    "TrailingData",
    "TruncatedMessage",
    "UnsupportedVersion",
    "WireError",
    "bits_needed",
    "column",
    "decode_reply",
    "decode_request",
    "encode_reply",
    "encode_request",
    "entries",
    "joint_digest",
    "with_blocks",
]
