"""Frames: what the server says in a stream (layout: ``docs/spans.md``).

The first one holds the ordinary reply to the request, each further one what was written since. All
say how long they are, so that whatever lies between may join them or cut them up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache

import numpy as np

from hlm.arrays import IntArray
from hlm.wire.bit_reader import BitReader
from hlm.wire.bit_writer import BitWriter
from hlm.wire.bits import bits_needed
from hlm.wire.errors import InvalidField
from hlm.wire.heads import bounded
from hlm.wire.messages import Reply, Request
from hlm.wire.reply import decode_reply
from hlm.wire.rows import Limits

_LENGTH_BYTES = 4
_DEFAULT_LIMITS = Limits()


class End(IntEnum):
    """Why the server writes no more of a row."""

    SPAN = 0
    """As many tokens as were asked for."""
    CONTEXT = 1
    """The longest text that the model reads."""
    STOPPED = 2
    """The device took it back: by a stop, or by a later request about the text."""
    UNHEARD = 3
    """Its credit was used up, and the device gave no more for a while."""
    LOST = 4
    """The text lost its place to others."""
    BUSY = 5
    """Too many rows are being written; this one has its verdict alone."""


@dataclass(frozen=True)
class Frame:
    """What was written since the frame before.

    Parameters
    ----------
    tokens
        int64 [n] for each row that was being written, in order; n may be 0.
    ends
        Rows of which no more will come, after these tokens.
    """

    tokens: Mapping[int, IntArray]
    ends: Mapping[int, End] = field(default_factory=dict)


def framed(body: bytes) -> bytes:
    """``body`` after its length: 7 bits a byte, the low ones first, bit 7 where more follow."""
    length, prefix = len(body), bytearray()
    while length > 0x7F:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    prefix.append(length)
    return bytes(prefix) + body


def encode_frame(frame: Frame, vocab: int) -> bytes:
    """Bytes of ``frame``, its length first; the rows being written are those of its tokens."""
    if len(frame.tokens) == 1 and not frame.ends and vocab > 1:
        (tokens,) = frame.tokens.values()
        if len(tokens) == 1:
            length, first, shift = _of_one_token(vocab)
            return (first + (int(tokens[0]) << shift)).to_bytes(length, "big")
    return _encoded(frame, vocab)


@lru_cache
def _of_one_token(vocab: int) -> tuple[int, int, int]:
    """Length of the commonest frame, its bits with token 0, and the token's place among them."""
    zero, one = (_encoded(Frame({0: np.array([token])}), vocab) for token in (0, 1))
    first = int.from_bytes(zero, "big")
    return len(zero), first, (int.from_bytes(one, "big") - first).bit_length() - 1


def _encoded(frame: Frame, vocab: int) -> bytes:
    writer = BitWriter()
    writer.flag(bool(frame.ends))
    if frame.ends:
        writer.bits(np.array([row in frame.ends for row in frame.tokens], np.uint8))
        for row in frame.tokens:
            if row in frame.ends:
                writer.uint(frame.ends[row], 3)
    parts = list(frame.tokens.values())
    writer.column([len(part) for part in parts], 0)
    writer.array(np.concatenate(parts), bits_needed(vocab))
    return framed(writer.getvalue())


class FrameReader:
    """Reads a stream, in whatever pieces it arrives.

    Parameters
    ----------
    request : Request
        What was asked.
    limits : Limits
        Largest frame that is read.

    Attributes
    ----------
    reply : Reply or None
        Once the first frame is here.
    running : list of int
        Rows of which more may come; meaningful once there is a reply.
    """

    def __init__(self, request: Request, limits: Limits = _DEFAULT_LIMITS) -> None:
        self.request = request
        self.limits = limits
        self.reply: Reply | None = None
        self.running: list[int] = []
        self._buffer = bytearray()

    @property
    def finished(self) -> bool:
        """Whether everything is here."""
        return self.reply is not None and not self.running and not self._buffer

    def feed(self, chunk: bytes) -> list[Frame]:
        """Take in what has arrived; the frames of tokens that are whole now.

        Raises
        ------
        WireError
            Whatever is wrong with the bytes; the stream is of no use then.
        """
        self._buffer += chunk
        frames = []
        while (body := self._next_body()) is not None:
            if self.reply is None:
                self.reply = decode_reply(body, self.request, self.limits)
                self.running = np.flatnonzero(self.reply.served).tolist()
            else:
                frames.append(self._read(body))
        return frames

    def _next_body(self) -> bytes | None:
        length = shift = 0
        for byte in self._buffer[:_LENGTH_BYTES]:
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte <= 0x7F:
                break
        else:
            if len(self._buffer) >= _LENGTH_BYTES:
                raise InvalidField(f"the length of a frame has at most {_LENGTH_BYTES} bytes")
            return None
        bounded(length, self.limits.max_bytes, "bytes of a frame")
        begin = shift // 7
        end = begin + length
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[begin:end])
        del self._buffer[:end]
        return body

    def _read(self, body: bytes) -> Frame:
        if not self.running:
            raise InvalidField("a frame after the end of its stream")
        rows, reader = self.running, BitReader(body)
        ended = reader.bits(len(rows)).tolist() if reader.flag() else []
        ends = {row: _end(reader.uint(3)) for row, flag in zip(rows, ended, strict=False) if flag}
        counts = reader.column(len(rows), 0)
        total = bounded(int(counts.sum()), self.limits.max_tokens, "tokens")
        tokens = reader.array(total, bits_needed(self.request.vocab))
        reader.finish()
        if not total and not ends:
            raise InvalidField("a frame that says nothing: it must have a token or an end")
        if total and int(tokens.max()) >= self.request.vocab:
            raise InvalidField(f"tokens must be in [0, {self.request.vocab})")
        self.running = [row for row in rows if row not in ends]
        parts = np.split(tokens, np.cumsum(counts)[:-1])
        return Frame(dict(zip(rows, parts, strict=True)), ends)


def _end(code: int) -> End:
    if code >= len(End):
        raise InvalidField(f"end {code}; known are 0 to {len(End) - 1}")
    return End(code)
