"""What a device asks about its escalated tokens, and what the language model's server answers.

Words used here: a *session* is one text of one client; the *prefix* is its tokens so far; to
*feed* a token is to let the large model read it; a *draft* is a token proposed by the small model,
not part of the prefix yet. In a *block* each row drafts one token further on the assumption that
the drafts before it are accepted.
"""

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Literal

import numpy as np
import numpy.typing as npt

from hlm.arrays import IntArray
from hlm.verifiers import VERIFIERS, Shape
from hlm.wire.errors import InvalidField

ByteArray = npt.NDArray[np.uint8]

NO_TOKEN = -1
"""Stands for "no draft" in a :class:`Row` and "no token" in a :class:`RowReply`."""

SCALAR_BITS = 16
"""Probabilities that travel alone are integers in [1, 2**16], in units of 2**-16."""


VERIFIER_SHAPES: dict[str, Shape] = {name: kind.claim for name, kind in VERIFIERS.items()}
"""Verifiers the wire knows; a name's place is its code."""


class Status(IntEnum):
    """What became of a row."""

    OK = 0
    PREFIX_NEEDED = 1
    """The server does not hold the tokens this row builds on: send them again, from 0."""
    REFUSED = 2
    """The row will never be served (context too long, for example)."""
    SKIPPED = 4
    """An earlier row of the same block was rejected or not served. Costs no bit."""


class _ByValue:
    """Equality of dataclasses that hold arrays."""

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(
            _same(getattr(self, field.name), getattr(other, field.name))
            for field in fields(self)  # type: ignore[arg-type]
        )

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Limits:
    """The largest message that a reader accepts; it allocates in proportion to these at most.

    Parameters
    ----------
    max_bytes
        Length of a message in bytes.
    max_rows
        Rows of a message, below 2**15.
    max_tokens_per_row
        Tokens of one row, and what ``start`` may be: the longest context.
    max_tokens
        Tokens of all rows together.
    max_vocab
        Size of the vocabulary.
    max_weights
        Weights of all rows together (for ``full``: rows times vocabulary).
    """

    max_bytes: int = 1 << 23
    max_rows: int = 4096
    max_tokens_per_row: int = 1 << 17
    max_tokens: int = 1 << 18
    max_vocab: int = 1 << 20
    max_weights: int = 1 << 22

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"{field.name}={getattr(self, field.name)} must be at least 1")
        if self.max_rows >= 1 << 15:
            raise ValueError(f"max_rows={self.max_rows} must be below {1 << 15}")


@dataclass(frozen=True, eq=False)
class Row(_ByValue):
    """One escalated position of one text, or tokens to feed without a question (a flush).

    Parameters
    ----------
    session
        The device's number for the text, in [0, 2**32).
    start
        Tokens the device believes that the server holds for this session. With 0 the text begins:
        the server replaces whatever it holds.
    tokens
        int64 [n], the tokens that follow, which the server does not have yet; n may be 0.
    draft
        The token to verify after them, or :data:`NO_TOKEN`.
    weight
        Claim of shape WEIGHT: probability of the draft in units of 2**-16, in [1, 2**16].
    support, weights
        Claim of shape SUPPORT: int64 [k] token ids, strictly increasing, and int64 [k] weights in
        units of ``2**-bits`` whose sum is at most ``2**bits`` (what is left is spread over the
        other tokens). Claim of shape PROBS: ``weights`` alone, [vocab], summing to ``2**bits``.
    quiet
        No feedback is wanted for the first ``quiet`` tokens: a prompt, or a prefix sent again.

    block
        The row goes on the block of the row before it, which has the same session and a draft:
        ``start`` is where that row ended, ``tokens`` its draft, ``quiet`` 1. None of the three is
        sent; :func:`following_row` fills them in.

    Notes
    -----
    Rows of one session are adjacent and served in their order; one that is not part of a block
    brings tokens that stand, whatever became of the drafts before it.
    """

    session: int
    start: int
    tokens: IntArray
    draft: int = NO_TOKEN
    weight: int | None = None
    support: IntArray | None = None
    weights: npt.NDArray[np.integer] | None = None
    quiet: int = 0
    block: bool = False


def following_row(
    previous: Row,
    draft: int = NO_TOKEN,
    weight: int | None = None,
    support: IntArray | None = None,
    weights: npt.NDArray[np.integer] | None = None,
) -> Row:
    """The next row of a block: ``draft`` comes after the draft of ``previous``."""
    tokens = np.array([previous.draft], dtype=np.int64)
    start = previous.start + len(previous.tokens)
    return Row(previous.session, start, tokens, draft, weight, support, weights, 1, True)


@dataclass(frozen=True, eq=False)
class Request(_ByValue):
    """Rows of one client, decided by one verifier.

    Parameters
    ----------
    verifier
        A key of :data:`VERIFIER_SHAPES`.
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
        The law that the server computes. Multiples of 1e-4 are the shortest; any float64 arrives
        unchanged.
    bits
        8 or 16, precision of ``weights``.
    """

    verifier: str
    vocab: int
    rows: tuple[Row, ...]
    seed: int = 0
    client: int = 0
    feedback: bool = False
    decoding: Literal["greedy", "sampled"] = "greedy"
    temperature: float = 1.0
    top_p: float = 1.0
    bits: int = 8
    identity: bytes = b""
    digest: int = 0

    @property
    def shape(self) -> Shape:
        """What every draft of this request comes with."""
        if self.verifier not in VERIFIER_SHAPES:
            known = ", ".join(VERIFIER_SHAPES)
            raise InvalidField(f"verifier={self.verifier!r} must be one of {known}")
        return VERIFIER_SHAPES[self.verifier]

    @property
    def begins(self) -> bool:
        """Whether a row starts at 0, so that the identity has to be known."""
        return any(row.start == 0 for row in self.rows)

    def builds(self, index: int) -> bool:
        """Whether row ``index`` goes on tokens of an earlier message."""
        first = index == 0 or self.rows[index - 1].session != self.rows[index].session
        return first and self.rows[index].start > 0

    def feedback_count(self, index: int) -> int:
        """Feedback bytes that row ``index`` gets if it is served (its draft's own comes last).

        The first token of a text has none: the large model predicts it from nothing.
        """
        if not self.feedback:
            return 0
        row = self.rows[index]
        silent = max(row.quiet, int(row.start == 0))
        return max(len(row.tokens) - silent, 0) + int(row.draft != NO_TOKEN)


@dataclass(frozen=True, eq=False)
class RowReply(_ByValue):
    """What the server says about one row.

    Parameters
    ----------
    status
        Every other field is only meaningful with ``OK``.
    accepted
        Whether the draft stands; then ``token`` is the draft.
    token
        The token at the draft's position, or :data:`NO_TOKEN`: in a row without a draft the server
        need not offer one, and after a rejection under a claim of shape WEIGHT the device
        resamples from ``target_*``.
    feedback
        uint8 [m], one byte (:mod:`hlm.feedback`) for each of the last m tokens fed or drafted; m is
        :meth:`Request.feedback_count` or less.
    target_support, target_weights
        The large model's law where it is not 0: int64 [k] strictly increasing ids and int64 [k]
        weights >= 1 that sum to 2**16.
    """

    status: Status = Status.OK
    accepted: bool = False
    token: int = NO_TOKEN
    feedback: ByteArray | None = None
    target_support: IntArray | None = None
    target_weights: IntArray | None = None


@dataclass(frozen=True, eq=False)
class Reply(_ByValue):
    """One :class:`RowReply` for each row of the request, in its order.

    Parameters
    ----------
    rows
        As many as the request has.
    """

    rows: tuple[RowReply, ...]


def _same(left: object, right: object) -> bool:
    if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
        empty: tuple[int, ...] = ()
        return np.array_equal(
            np.asarray(empty if left is None else left),  # no feedback and none wanted are alike
            np.asarray(empty if right is None else right),
        )
    return bool(left == right)
