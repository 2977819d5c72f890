"""Where a device keeps feedback between rounds: one SQLite file, bounded, never text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from clients.learning.feedback import Feedback
from clients.learning.feedback_reader import LAYOUT, FeedbackReader

_TABLES = (
    "CREATE TABLE IF NOT EXISTS text (number INTEGER PRIMARY KEY AUTOINCREMENT,"
    " tokens INTEGER NOT NULL, about TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS token (id INTEGER PRIMARY KEY, u REAL NOT NULL, beta REAL,"
    " ratio_beta REAL, kept INTEGER NOT NULL, known INTEGER NOT NULL, weight REAL NOT NULL,"
    " prompt INTEGER NOT NULL, below INTEGER NOT NULL, features BLOB)",
    "CREATE INDEX IF NOT EXISTS token_prompt ON token (prompt)",
    f"PRAGMA user_version = {LAYOUT}",
)


class FeedbackStore(FeedbackReader):
    """Feedback in one SQLite file on the device: serving writes it, ``train`` learns from it.

    Every call is one transaction, so a device that loses power keeps a readable store, and one
    process may write while others read. When more than ``max_rows`` tokens are held the oldest
    texts leave whole: half a text would bias the per-prompt risk that certified thresholds are
    built on.

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
        super().__init__(path)

    def _open(self) -> None:
        self._connection.execute("PRAGMA journal_mode=WAL")
        (layout,) = self._connection.execute("PRAGMA user_version").fetchone()
        if layout == 0:
            with self._connection:
                for statement in _TABLES:
                    self._connection.execute(statement)
        super()._open()

    def append(self, feedback: Feedback, about: str = "") -> int:
        """Add one text's tokens, then let the oldest texts go until ``max_rows`` are held.

        Parameters
        ----------
        feedback : Feedback
            At least one token; its ``prompt`` is replaced by the text's number.
        about : str
            What else is to be known of the text.

        Returns
        -------
        int
            Number of the text in this store, from 1, never used twice.

        Raises
        ------
        ValueError
            If there is no token, the text alone exceeds ``max_rows``, or the feature width
            differs from what the store holds; the store is unchanged then.
        """
        if not 0 < len(feedback) <= self.max_rows:
            raise ValueError(f"a text of {len(feedback)} tokens: must be 1 to {self.max_rows}")
        with self._lock, self._connection:
            self._check_width(feedback)
            cursor = self._connection.execute(
                "INSERT INTO text (tokens, about) VALUES (?, ?)", (len(feedback), about)
            )
            number = int(cursor.lastrowid or 0)
            self._connection.executemany(
                "INSERT INTO token (u, beta, ratio_beta, kept, known, weight, prompt, below,"
                " features) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                _encode(feedback, number),
            )
            self._evict()
        return number

    def __len__(self) -> int:
        """Number of tokens held."""
        with self._lock:
            return self._count()

    def _count(self) -> int:
        total = self._connection.execute("SELECT SUM(tokens) FROM text").fetchone()[0]
        return int(total or 0)

    def _check_width(self, feedback: Feedback) -> None:
        stored = self._connection.execute(
            "SELECT LENGTH(features) FROM token WHERE features IS NOT NULL LIMIT 1"
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
        held = self._connection.execute("SELECT number, tokens FROM text ORDER BY number")
        numbers, sizes = np.array(held.fetchall()).T
        last = int(numbers[np.searchsorted(np.cumsum(sizes), excess)])
        self._connection.execute("DELETE FROM token WHERE prompt <= ?", (last,))
        self._connection.execute("DELETE FROM text WHERE number <= ?", (last,))


def _encode(feedback: Feedback, number: int) -> list[tuple[Any, ...]]:
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
            [number] * len(feedback),
            feedback.below.tolist(),
            blobs,
            strict=True,
        )
    )
