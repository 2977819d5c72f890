"""Where a device keeps feedback between rounds: one SQLite file, bounded, never text."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from clients.feedback import COLUMN_DTYPES, Feedback

__all__ = ["FeedbackStore"]


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
            for (name, dtype), column in zip(COLUMN_DTYPES.items(), columns, strict=True)
        }
        return Feedback(**arrays, features=features)
