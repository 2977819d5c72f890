"""The tokens of a round on their way from step to step: a Parquet table, a row for each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clients.learning.feedback import COLUMN_DTYPES, Feedback
from clients.records import TokenRecords
from hlm.arrays import BoolArray, FloatArray, IntArray

_OF_TEXT = (
    "client", "batch", "item", "session", "each", "threshold", "counted", "reading",
    "read",
)  # fmt: skip
_OF_TOKEN = tuple(
    name
    for name, value in vars(TokenRecords(0, 0)).items()
    if value is not None and name != "present"
)
_SUMS = b"fedhlm-sums"


@dataclass(frozen=True)
class Tokens:
    """Texts of some clients in one round.

    Attributes
    ----------
    client, batch : int64 [t]
        Whose text it is, and which of its batches it came in, from 0.
    item, session, each : int64 [t]
        Of the dataset; the text's number; most routed tokens.
    threshold : float64 [t]
        At which its client keeps.
    counted, reading : bool [t]
        A calibration may count it; the client learns from what it keeps as well.
    read : int64 [t]
        Kept tokens that the LLM has read for this.
    records : TokenRecords
        [t, steps], as far as steps have come with them.
    answers : int64 [t, steps]
        The right tokens, -1 where unknown.
    """

    client: IntArray
    batch: IntArray
    item: IntArray
    session: IntArray
    each: IntArray
    threshold: FloatArray
    counted: BoolArray
    reading: BoolArray
    read: IntArray
    records: TokenRecords
    answers: IntArray

    def select(self, rows: IntArray) -> Tokens:
        """Some of the texts, int64 [n]."""
        records = self.records.select(rows)
        return Tokens(**self.rows(rows), records=records, answers=self.answers[rows])

    def rows(self, row: IntArray) -> dict[str, Any]:
        """What is known of the texts of some tokens (int64 [n]), by name, [n] each."""
        return {name: getattr(self, name)[row] for name in _OF_TEXT}


def save(path: str, parts: Sequence[Tokens]) -> None:
    """Write the tokens of all parts."""
    tables, texts = [], 0
    for part in parts:
        row, step = at = np.nonzero(part.records.present)
        columns = {"text": texts + row, "step": step, "answer": part.answers[at]}
        columns |= {name: getattr(part.records, name)[at] for name in _OF_TOKEN}
        tables.append(pa.table({**columns, **part.rows(row)}))
        texts += len(part.item)
    _write(path, pa.concat_tables(tables))


def load(path: str) -> Tokens:
    """Read what `save` wrote; every text has a token."""
    table = pq.read_table(path)
    column = {name: table[name].to_numpy() for name in table.column_names}
    at = column["text"], column["step"]
    shape = int(at[0].max()) + 1, int(at[1].max()) + 1
    records, answers = TokenRecords(*shape), np.full(shape, -1, np.int64)
    records.present[at], answers[at] = True, column["answer"]
    for name in _OF_TOKEN:
        getattr(records, name)[at] = column[name]
    first = np.flatnonzero(at[1] == 0)
    return Tokens(
        **{name: column[name][first] for name in _OF_TEXT}, records=records, answers=answers
    )


def save_feedback(path: str, tokens: Tokens, feedback: Feedback, sums: dict[str, Any]) -> None:
    """Write what may be learned from tokens, whose they are, and their sums for the report."""
    columns = {name: getattr(feedback, name) for name in COLUMN_DTYPES}
    table = pa.table({**columns, **tokens.rows(feedback.prompt)})
    _write(path, table.replace_schema_metadata({_SUMS: json.dumps(sums).encode()}))


def load_feedback(path: str) -> tuple[Feedback, IntArray, BoolArray, dict[str, Any]]:
    """The feedback, each token's client and whether it may be counted, and the sums."""
    table = pq.read_table(path)
    columns: dict[str, Any] = {name: table[name].to_numpy() for name in COLUMN_DTYPES}
    sums: dict[str, Any] = json.loads((table.schema.metadata or {})[_SUMS])
    client, counted = table["client"].to_numpy(), table["counted"].to_numpy()
    return Feedback.create(**columns), client, counted, sums


def _write(path: str, table: pa.Table) -> None:
    partial = Path(f"{path}.partial")
    pq.write_table(table, partial)
    partial.replace(path)
