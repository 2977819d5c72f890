"""What a device asks about its escalated tokens, and what the language model's server answers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from hlm.arrays import BoolArray, IntArray
from hlm.verifiers import VERIFIERS, Shape
from hlm.wire.columns import Columns, column
from hlm.wire.errors import InvalidField
from hlm.wire.prefix import DIGEST_BITS, IDENTITY_BYTES
from hlm.wire.rows import NO_TOKEN, Rows, check_rows


class Status(IntEnum):
    """What became of a row."""

    OK = 0
    PREFIX_NEEDED = 1
    """The server does not hold the tokens this row builds on: send them again, from 0."""
    REFUSED = 2
    """The row will never be served (context too long, for example)."""
    SKIPPED = 4
    """An earlier row of the same block was rejected or not served. Costs no bit."""


@dataclass(frozen=True)
class Request:
    """Rows of one client, decided by one verifier.

    Parameters
    ----------
    verifier
        A key of :data:`hlm.verifiers.VERIFIERS`.
    vocab
        Size of the shared vocabulary, at least 2.
    rows
        At least one row.
    seed
        In [0, 2**64): the seed of shared randomness. Leave it 0 where the verifier needs none;
        0 takes four bits, any other value up to 68.
    client
        In [0, 2**32). It keys shared randomness, and is no secret.
    identity
        16 bytes that the device process drew at random: where a row starts at 0, and only there.
    digest
        :func:`~hlm.wire.joint_digest` of the tokens before the rows that build on an earlier
        message, in [0, 2**32); 0 if none does.
    feedback
        Whether the server returns a byte about every token fed and every draft.
    decoding, temperature, top_p
        The distribution that the server computes. Multiples of 1e-4 are the shortest; any float64
        arrives unchanged.
    bits
        8 or 16, precision of ``weights``.

    Raises
    ------
    InvalidField
        For the first field that is out of range or contradicts another.
    """

    verifier: str
    vocab: int
    rows: Rows
    seed: int = 0
    client: int = 0
    feedback: bool = False
    decoding: Literal["greedy", "sampled"] = "greedy"
    temperature: float = 1.0
    top_p: float = 1.0
    bits: int = 8
    identity: bytes = b""
    digest: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("verifier", tuple(VERIFIERS)),
            ("bits", (8, 16)),
            ("decoding", ("greedy", "sampled")),
        ):
            if getattr(self, name) not in allowed:
                raise InvalidField(f"{name}={getattr(self, name)!r} must be one of {allowed}")
        if self.vocab < 2:
            raise InvalidField(f"vocab={self.vocab} must be at least 2")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise InvalidField(f"temperature={self.temperature} must be above 0")
        if not 0 < self.top_p <= 1:
            raise InvalidField(f"top_p={self.top_p} must be in (0, 1]")
        for name, high in (("client", 1 << 32), ("seed", 1 << 64)):
            if not 0 <= getattr(self, name) < high:
                raise InvalidField(f"{name}={getattr(self, name)} must be in [0, {high})")
        if not len(self.rows):
            raise InvalidField("rows must not be empty")
        begins = np.count_nonzero(self.rows.starts) < len(self.rows)
        if len(self.identity) != (IDENTITY_BYTES if begins else 0):
            raise InvalidField(
                f"identity has {len(self.identity)} bytes; {IDENTITY_BYTES} are needed where a row "
                "starts at 0, and none elsewhere"
            )
        most = 1 << DIGEST_BITS if np.count_nonzero(self.rows.builds) else 1
        if not 0 <= self.digest < most:
            raise InvalidField(f"digest={self.digest} must be in [0, {most}) for these rows")
        check_rows(self.rows, self.shape, self.vocab, self.bits)

    @property
    def shape(self) -> Shape:
        """What every draft of this request comes with."""
        return VERIFIERS[self.verifier].claim

    @cached_property
    def fed_counts(self) -> IntArray:
        """Feedback bytes about the tokens of each row, int64 [rows], if it is served.

        The first token of a text has none: the large model predicts it from nothing.
        """
        if not self.feedback:
            return np.zeros(len(self.rows), np.int64)
        silent = np.maximum(self.rows.quiet, self.rows.starts == 0)
        return np.asarray(np.maximum(self.rows.lengths - silent, 0))

    @cached_property
    def feedback_counts(self) -> IntArray:
        """The same, with the byte about its draft, which comes last."""
        return self.fed_counts + (self.rows.drafted & self.feedback)


@dataclass(frozen=True, eq=False)
class Reply(Columns):
    """What the server says about the rows of a request, in their order.

    Parameters
    ----------
    statuses
        A :class:`Status` each; everything else is only meaningful with ``OK``.
    accepted
        bool: whether the draft stands; then the token is the draft.
    tokens
        The token at the draft's position, or :data:`NO_TOKEN`: in a row without a draft the server
        need not offer one, and after a rejection under a claim of shape WEIGHT the device may have
        to resample from the target.
    feedback_counts, feedback
        uint8, one byte for each of a row's last tokens fed or drafted: bit 7 says that the token
        is what the large model would have put there, bits 0-6 are ``round(-8 ln y)``, at most
        127. A row has :attr:`Request.feedback_counts` of them or fewer.
    target_counts, target_support, target_weights
        The large model's distribution where it is not 0: strictly increasing ids and weights >= 1
        that sum to 2**16.
    """

    statuses: IntArray = column()
    accepted: BoolArray = column(np.bool_)
    tokens: IntArray = column(fill=NO_TOKEN)
    feedback_counts: IntArray = column()
    feedback: npt.NDArray[np.uint8] = column(np.uint8, of="feedback_counts")
    target_counts: IntArray = column()
    target_support: IntArray = column(of="target_counts")
    target_weights: IntArray = column(of="target_counts")

    @cached_property
    def served(self) -> BoolArray:
        """Rows with status ``OK``."""
        return np.asarray(self.statuses == int(Status.OK))  # the enum itself takes numpy longer
