"""Feedback that a serving device has written, as the rounds read it."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from clients.learning.feedback import COLUMN_DTYPES, Feedback

LAYOUT = 1


class FeedbackReader:
    """The reading half of a `FeedbackStore`: every call sees one state of the file, whole.

    Parameters
    ----------
    path : str or Path
        An existing store.

    Raises
    ------
    ValueError
        If the file is not a feedback store.
    """

    def __init__(self, path: str | Path) -> None:
        self._lock = threading.Lock()
        try:
            # Requests come in several threads; the lock serialises them.
            self._connection = sqlite3.connect(str(path), timeout=30.0, check_same_thread=False)
        except sqlite3.OperationalError as error:
            raise ValueError(f"{path} is not a feedback store: {error}") from error
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise ValueError(f"{path} is not a feedback store: {error}") from error

    def _open(self) -> None:
        (layout,) = self._connection.execute("PRAGMA user_version").fetchone()
        if layout != LAYOUT:
            raise sqlite3.DatabaseError(f"its layout is {layout}, known is {LAYOUT}")

    def read(self, after: int = 0) -> tuple[Feedback, dict[int, str]]:
        """Whole texts in the order written.

        Parameters
        ----------
        after : int
            Only texts of a higher number (see :meth:`newest`); 0 reads everything.

        Returns
        -------
        Feedback, dict
            Tokens, ``prompt`` being the text's number; and what is known about each number.
        """
        # One transaction: a text that is written meanwhile is in both or in neither.
        with self._lock, self._connection:
            self._connection.execute("BEGIN")
            texts = self._connection.execute(
                "SELECT number, about FROM text WHERE number > ? ORDER BY number", (after,)
            ).fetchall()
            rows = self._connection.execute(
                "SELECT u, beta, ratio_beta, kept, known, weight, prompt, below, features"
                " FROM token WHERE prompt > ? ORDER BY id",
                (after,),
            ).fetchall()
        return _decode(rows), dict(texts)

    def newest(self) -> int:
        """Number of the newest text ever written, 0 if none: a bookmark for ``read(after=...)``."""
        with self._lock:
            row = self._connection.execute(
                "SELECT seq FROM sqlite_sequence WHERE name = 'text'"
            ).fetchone()
        return 0 if row is None else int(row[0])

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
