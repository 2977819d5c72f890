"""Whose texts a message goes on, and from which tokens: what keeps texts from mixing unnoticed.

A device process draws 128 random bits, its *identity*, and sends them where texts begin. A message
whose rows build on tokens that the server was given before brings a *digest* of all these tokens,
keyed by the identity. A server that holds other texts, older ones, or those of a device that
happens to have the same number finds that the digest differs and asks for the prefixes.

The digest has 32 bits: a message that meets a wrong token is taken for right with a probability of
2**-32, one in four billion. Without the identity nobody can do better than guess.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

IDENTITY_BYTES = 16
DIGEST_BITS = 32
_PREFIX_BYTES = 16


class PrefixDigest:
    """Digests of the prefixes of one text; a longer one costs its new tokens only.

    Keyed BLAKE2b (RFC 7693) of 16 bytes over the ids as 32-bit little-endian integers.

    Parameters
    ----------
    identity : bytes
        `IDENTITY_BYTES` random bytes.

    Raises
    ------
    ValueError
        If the identity has another length.
    """

    def __init__(self, identity: bytes) -> None:
        if len(identity) != IDENTITY_BYTES:
            raise ValueError(f"identity has {len(identity)} bytes: {IDENTITY_BYTES} are needed")
        self.identity = identity
        self._length = 0
        self._restart()

    def at(self, tokens: npt.NDArray[np.int64], length: int) -> bytes:
        """Digest of ``tokens[:length]``, 16 bytes.

        Parameters
        ----------
        tokens : ndarray of int64 [n]
            The text. Up to the length asked for last it has to be what it was then, unless this
            length is smaller.
        length : int
            In 0 .. n.
        """
        if length < self._length:
            self._restart()
        self._state.update(tokens[self._length : length].astype("<u4").tobytes())
        self._length = length
        return self._state.digest()

    def _restart(self) -> None:
        self._state = blake2b(key=self.identity, digest_size=_PREFIX_BYTES)
        self._length = 0


def joint_digest(identity: bytes, prefixes: Iterable[tuple[int, int, bytes]]) -> int:
    """Digest of all that a message builds on, in [0, 2**32).

    Keyed BLAKE2b of 4 bytes, read big-endian, over session and start as 32-bit little-endian
    integers and the 16 bytes of `PrefixDigest.at`, row after row.

    Parameters
    ----------
    identity : bytes
        Of the device process.
    prefixes : iterable of (int, int, bytes)
        Session, start and prefix digest of each row that builds on an earlier message, in order.
    """
    state = blake2b(key=identity, digest_size=DIGEST_BITS // 8)
    for session, start, digest in prefixes:
        state.update(struct.pack("<II", session, start) + digest)
    return int.from_bytes(state.digest(), "big")
