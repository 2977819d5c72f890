"""What a device knows about the tokens it produced, and where it keeps that between rounds.

One row is one drafted token: how unsure the small model was (``u``), whether the device kept the
draft, and, where the large model has spoken, how wrong the draft was (``beta``). There is never
text, a token id or a prefix in here, so the store can outlive the conversation it came from.

``beta`` becomes known in three ways: the token was escalated and verified, the server read it as
part of a later prefix and returned its log-probability ("free feedback"), or the device audited
it: verified a kept token anyway, with probability ``audit_rate``. The first two have weight 1,
an audited kept token has weight ``1 / audit_rate``, so that ``sum(known * weight * f(beta))`` is
an unbiased estimate of ``sum(f(beta))`` over all tokens.
"""

from __future__ import annotations

import dataclasses
import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Feedback", "FeedbackStore"]

_DTYPES: dict[str, type[np.generic]] = {
    "u": np.float64,
    "beta": np.float64,
    "ratio_beta": np.float64,
    "kept": np.bool_,
    "known": np.bool_,
    "weight": np.float64,
    "prompt": np.int64,
    "below": np.bool_,
}


@dataclass(frozen=True)
class Feedback:
    """Columns over ``n`` drafted tokens; build one with :meth:`create` to get defaults.

    Attributes
    ----------
    u : float64 [n], in [0, 1]
        Uncertainty, or the learned router's score in its place.
    beta : float64 [n], in [0, 1]
        The loss of keeping the draft: ``1{draft != argmax y}`` in greedy decoding,
        ``max(1 - y_d / x_d, 0)`` (FedHLM eq. 3) in sampled decoding. Undefined where not ``known``.
    ratio_beta : float64 [n], in [0, 1]
        Eq. 3's value on the softmax laws, whatever the decoding. Undefined where not ``known``.
    kept : bool [n]
        The draft stayed on the device (or came from an unverified cache or peer).
    known : bool [n]
        ``beta``, ``ratio_beta`` and ``below`` are measured for this token.
    weight : float64 [n], >= 0
        Inverse probability of being measured: 1 for verified tokens and free feedback,
        ``1 / audit_rate`` for audited kept tokens.
    prompt : int64 [n]
        The prompt the token belongs to: the exchangeable unit of every guarantee. Unique within
        one client and store.
    below : bool [n]
        ``y_d < x_d``: speculative sampling could have rejected the draft.
    features : float32 [n, f] or None
        What a learned router sees of the step.
    """

    u: NDArray[np.float64]
    beta: NDArray[np.float64]
    ratio_beta: NDArray[np.float64]
    kept: NDArray[np.bool_]
    known: NDArray[np.bool_]
    weight: NDArray[np.float64]
    prompt: NDArray[np.int64]
    below: NDArray[np.bool_]
    features: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        """Bring columns to their dtype and refuse what no loss could use.

        Raises
        ------
        ValueError
            On columns of different length, values outside their range, or NaN where ``known``.
        """
        rows = np.size(self.u)
        for name, dtype in _DTYPES.items():
            column = np.asarray(getattr(self, name), dtype=dtype)
            if column.shape != (rows,):
                raise ValueError(
                    f"feedback column {name} has shape {column.shape}, expected ({rows},)"
                )
            object.__setattr__(self, name, column)
        _require_unit_interval("u", self.u)
        _require_unit_interval("beta", self.beta[self.known])
        _require_unit_interval("ratio_beta", self.ratio_beta[self.known])
        if not (np.isfinite(self.weight).all() and (self.weight >= 0).all()):
            raise ValueError("feedback column weight must be finite and not negative")
        if self.features is not None:
            features = np.asarray(self.features, dtype=np.float32)
            if features.ndim != 2 or len(features) != rows:
                raise ValueError(
                    f"feedback features have shape {features.shape}, expected ({rows}, f)"
                )
            object.__setattr__(self, "features", features)

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.u)

    @classmethod
    def create(
        cls,
        u: ArrayLike,
        beta: ArrayLike,
        *,
        ratio_beta: ArrayLike | None = None,
        kept: ArrayLike | None = None,
        known: ArrayLike | None = None,
        weight: ArrayLike | None = None,
        prompt: ArrayLike | None = None,
        below: ArrayLike | None = None,
        features: ArrayLike | None = None,
    ) -> Feedback:
        """Columns with defaults: escalated, known, weight 1, each token its own prompt.

        ``ratio_beta`` defaults to ``beta`` and ``below`` to ``ratio_beta > 0``, which is the same
        statement by eq. 3.
        """
        uncertainty = np.asarray(u, dtype=np.float64)
        loss = np.asarray(beta, dtype=np.float64)
        rows = len(uncertainty)
        ratio = loss if ratio_beta is None else np.asarray(ratio_beta, dtype=np.float64)
        return cls(
            u=uncertainty,
            beta=loss,
            ratio_beta=ratio,
            kept=np.zeros(rows, bool) if kept is None else np.asarray(kept, bool),
            known=np.ones(rows, bool) if known is None else np.asarray(known, bool),
            weight=np.ones(rows) if weight is None else np.asarray(weight, np.float64),
            prompt=np.arange(rows) if prompt is None else np.asarray(prompt, np.int64),
            below=ratio > 0 if below is None else np.asarray(below, bool),
            features=None if features is None else np.asarray(features, np.float32),
        )

    @classmethod
    def empty(cls, feature_count: int | None = None) -> Feedback:
        """Zero tokens; ``feature_count`` gives the width of an empty feature table."""
        features = None if feature_count is None else np.zeros((0, feature_count), np.float32)
        return cls.create([], [], features=features)

    @classmethod
    def concatenate(cls, parts: Sequence[Feedback]) -> Feedback:
        """All rows of ``parts`` in order. Features survive only if every non-empty part has them.

        Raises
        ------
        ValueError
            If feature tables differ in width.
        """
        filled = [part for part in parts if len(part)]
        if not filled:
            return parts[0] if parts else cls.empty()
        tables = [part.features for part in filled if part.features is not None]
        if len({table.shape[1] for table in tables}) > 1:
            widths = sorted({table.shape[1] for table in tables})
            raise ValueError(f"feedback features differ in width: {widths}")
        columns: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in filled]) for name in _DTYPES
        }
        features = np.concatenate(tables) if len(tables) == len(filled) else None
        return cls(**columns, features=features)

    def append(self, other: Feedback) -> Feedback:
        """The rows of this feedback followed by those of ``other``."""
        return Feedback.concatenate([self, other])

    def select(self, rows: NDArray[np.bool_] | NDArray[np.int64] | slice) -> Feedback:
        """The rows a mask, an index array or a slice picks."""
        columns: dict[str, Any] = {name: getattr(self, name)[rows] for name in _DTYPES}
        return Feedback(**columns, features=None if self.features is None else self.features[rows])

    def with_scores(self, scores: ArrayLike) -> Feedback:
        """The same tokens with ``scores`` float64 [n] in place of ``u``."""
        return dataclasses.replace(self, u=np.asarray(scores, dtype=np.float64))

    @property
    def effective_weight(self) -> NDArray[np.float64]:
        """Weight float64 [n] with zero where beta is unknown."""
        return np.where(self.known, self.weight, 0.0)

    @property
    def weighted_beta(self) -> NDArray[np.float64]:
        """Unbiased estimate of each token's beta, float64 [n]: ``known * weight * beta``."""
        return np.where(self.known, self.weight * np.where(self.known, self.beta, 0.0), 0.0)


class FeedbackStore:
    """Feedback in one SQLite file on the device: serving writes it, ``train`` learns from it.

    Every call is one transaction, so a device that loses power keeps a readable store. When more
    than ``max_rows`` tokens are held the oldest prompts leave whole: half a prompt would bias the
    per-prompt risk that certified thresholds are built on.

    Parameters
    ----------
    path : str or Path
        Database file, created if absent; ``":memory:"`` keeps everything in this process.
    max_rows : int
        Most tokens held, >= 1.

    Raises
    ------
    ValueError
        If ``max_rows`` is below 1, or the file is not a feedback store.
    """

    def __init__(self, path: str | Path = ":memory:", max_rows: int = 200_000) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, got {max_rows}")
        self.max_rows = max_rows
        self._lock = threading.Lock()
        # Ray may call one client object from several threads; the lock serialises them.
        self._connection = sqlite3.connect(str(path), timeout=30.0, check_same_thread=False)
        try:
            self._connection.execute("PRAGMA journal_mode=WAL")
            with self._connection:
                self._connection.execute(
                    "CREATE TABLE IF NOT EXISTS feedback (id INTEGER PRIMARY KEY AUTOINCREMENT,"
                    " u REAL NOT NULL, beta REAL, ratio_beta REAL, kept INTEGER NOT NULL,"
                    " known INTEGER NOT NULL, weight REAL NOT NULL, prompt INTEGER NOT NULL,"
                    " below INTEGER NOT NULL, features BLOB)"
                )
                self._connection.execute(
                    "CREATE INDEX IF NOT EXISTS feedback_prompt ON feedback (prompt)"
                )
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise ValueError(f"{path} is not a feedback store: {error}") from error

    def append(self, feedback: Feedback) -> None:
        """Add rows, then let the oldest prompts go until at most ``max_rows`` are held.

        Raises
        ------
        ValueError
            If the newest prompt alone exceeds ``max_rows``, or the feature width differs from
            what the store holds; the store is unchanged then.
        """
        if not len(feedback):
            return
        rows = self._encode(feedback)
        with self._lock, self._connection:
            self._check_width(feedback)
            self._connection.executemany(
                "INSERT INTO feedback (u, beta, ratio_beta, kept, known, weight, prompt, below,"
                " features) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                rows,
            )
            self._evict()

    def read(self, after: int = 0, limit: int | None = None) -> Feedback:
        """Rows in the order written.

        Parameters
        ----------
        after : int
            Only rows with an id above this one (see :meth:`newest_id`); 0 reads everything.
        limit : int or None
            At most this many of the newest rows.
        """
        query = (
            "SELECT u, beta, ratio_beta, kept, known, weight, prompt, below, features FROM ("
            "SELECT * FROM feedback WHERE id > ? ORDER BY id DESC LIMIT ?) ORDER BY id"
        )
        with self._lock:
            rows = self._connection.execute(query, (after, -1 if limit is None else limit))
            return self._decode(rows.fetchall())

    def newest_id(self) -> int:
        """Id of the newest row ever written, 0 if none: a bookmark for ``read(after=...)``."""
        with self._lock:
            row = self._connection.execute(
                "SELECT seq FROM sqlite_sequence WHERE name = 'feedback'"
            ).fetchone()
        return 0 if row is None else int(row[0])

    def __len__(self) -> int:
        """Number of tokens held."""
        with self._lock:
            return self._count()

    def clear(self) -> None:
        """Forget every row (the bookmark of :meth:`newest_id` goes on counting)."""
        with self._lock, self._connection:
            self._connection.execute("DELETE FROM feedback")

    def close(self) -> None:
        """Close the file; further calls fail."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _count(self) -> int:
        return int(self._connection.execute("SELECT COUNT(*) FROM feedback").fetchone()[0])

    def _check_width(self, feedback: Feedback) -> None:
        stored = self._connection.execute(
            "SELECT LENGTH(features) FROM feedback WHERE features IS NOT NULL LIMIT 1"
        ).fetchone()
        if stored is None or feedback.features is None:
            return
        width = int(stored[0]) // 4
        if feedback.features.shape[1] != width:
            raise ValueError(
                f"feedback has {feedback.features.shape[1]} features a token, the store {width}"
            )

    def _evict(self) -> None:
        excess = self._count() - self.max_rows
        if excess <= 0:
            return
        oldest_first = self._connection.execute(
            "SELECT prompt, COUNT(*) FROM feedback GROUP BY prompt ORDER BY MAX(id)"
        ).fetchall()
        sizes = np.array([size for _, size in oldest_first])
        leaving = int(np.searchsorted(np.cumsum(sizes), excess)) + 1
        if leaving == len(oldest_first):
            raise ValueError(
                f"prompt {oldest_first[-1][0]} has {sizes[-1]} tokens, more than max_rows "
                f"{self.max_rows}"
            )
        self._connection.executemany(
            "DELETE FROM feedback WHERE prompt = ?",
            [(prompt,) for prompt, _ in oldest_first[:leaving]],
        )

    @staticmethod
    def _encode(feedback: Feedback) -> list[tuple[Any, ...]]:
        # SQLite has no NaN, so an unknown beta is stored as NULL.
        beta = np.where(feedback.known, feedback.beta, np.nan)
        ratio = np.where(feedback.known, feedback.ratio_beta, np.nan)
        blobs: list[bytes | None] = [None] * len(feedback)
        if feedback.features is not None:
            blobs = [row.tobytes() for row in feedback.features.astype("<f4")]
        return list(
            zip(
                feedback.u.tolist(),
                beta.tolist(),
                ratio.tolist(),
                feedback.kept.tolist(),
                feedback.known.tolist(),
                feedback.weight.tolist(),
                feedback.prompt.tolist(),
                feedback.below.tolist(),
                blobs,
                strict=True,
            )
        )

    @staticmethod
    def _decode(rows: list[tuple[Any, ...]]) -> Feedback:
        if not rows:
            return Feedback.empty()
        columns = list(zip(*rows, strict=True))
        blobs = columns.pop()
        features = None
        if all(blob is not None for blob in blobs):
            features = np.frombuffer(b"".join(blobs), "<f4").reshape(len(rows), -1)
        arrays: dict[str, Any] = {
            name: np.array(column, dtype=dtype)
            for (name, dtype), column in zip(_DTYPES.items(), columns, strict=True)
        }
        return Feedback(**arrays, features=features)


def _require_unit_interval(name: str, values: NDArray[np.float64]) -> None:
    """Refuse anything outside [0, 1]; NaN fails the comparison and is refused with it."""
    wrong = ~((values >= 0) & (values <= 1))
    if wrong.any():
        raise ValueError(
            f"feedback column {name} must lie in [0, 1], got {values[wrong][0]} "
            f"in {int(wrong.sum())} of {len(values)} rows"
        )
