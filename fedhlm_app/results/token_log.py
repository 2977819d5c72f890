"""`tokens.parquet`: one row for every routed token.

Token ids are not in it, and texts only with `token-texts`: they do not leave a device otherwise.
"""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fedhlm_app.results.runs import TOKENS, RunFolder
from fedhlm_app.results.summary import STAGES

SCHEMA = pa.schema(
    [
        pa.field("round", pa.int32(), nullable=False),  # from 1
        pa.field("client", pa.int32(), nullable=False),
        pa.field("cluster", pa.int32(), nullable=False),
        pa.field("prompt", pa.int64(), nullable=False),  # the item's number in the data
        pa.field("position", pa.int32(), nullable=False),  # from 0, first routed token
        pa.field("stage", pa.dictionary(pa.int8(), pa.string()), nullable=False),
        pa.field("uncertainty", pa.float32(), nullable=False),  # in [0, 1]
        pa.field("beta", pa.float32()),  # rejection probability; null where nobody measured it
        pa.field("text", pa.string()),  # what it adds to its text; null without `token-texts`
        pa.field("before", pa.string()),  # the prompt, at a text's first token; null elsewhere
    ]
)

PARTS = "tokens-parts"
"""Folder of the rounds' parts while a run is under way."""


class TokenLog:
    """Writes `tokens.parquet`; a context manager.

    Rows gather in memory until their round is over and then become one part, a file of its own in
    `tokens-parts/`. A run that breaks off leaves its parts, so a resumed one goes on with them.
    Closing the log without an error joins all parts to `tokens.parquet`. Every file takes its
    name when it is whole: a Parquet file that is half written cannot be read at all.

    Parameters
    ----------
    folder : RunFolder
        The run's.
    rounds_done : int
        Rounds, >= 0, of the checkpoint the run goes on from. Rows of later rounds, which will be
        run again, are dropped; so are all rows of an earlier run with 0.
    """

    def __init__(self, folder: RunFolder, rounds_done: int = 0) -> None:
        self.path = folder.path / TOKENS
        self._parts = folder.path / PARTS
        self._parts.mkdir(exist_ok=True)
        self._pending: list[pa.Table] = []
        self._drop_after(rounds_done)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()

    def append(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """Add rows, given as columns of one length named as in `SCHEMA`.

        Raises
        ------
        ValueError
            A column is missing, unknown or of another length, or a stage is unknown.
        """
        if set(columns) != set(SCHEMA.names):
            odd = sorted(set(columns) ^ set(SCHEMA.names))
            raise ValueError(f"token log columns {odd}: missing, or not one of {SCHEMA.names}")
        if unknown := set(columns["stage"]) - set(STAGES):
            raise ValueError(f"token log stage {sorted(unknown)}: must be one of {STAGES}")
        table = pa.table({name: columns[name] for name in SCHEMA.names})
        self._pending.append(table.cast(SCHEMA))

    def end_round(self, number: int) -> None:
        """Make what was added since the last call the part of round `number` (from 1)."""
        if self._pending:
            part = self._parts / f"round-{number:06d}.parquet"
            _write_whole(part, self._pending)
            self._pending = []

    def close(self) -> None:
        """Join the parts, and what is not a part yet, to the one file."""
        parts = sorted(self._parts.glob("*.parquet"))
        _write_whole(self.path, itertools.chain(map(pq.read_table, parts), self._pending))
        self._pending = []
        # Only now: whoever breaks off before this line still has the parts.
        shutil.rmtree(self._parts)

    def _drop_after(self, rounds_done: int) -> None:
        """Keep the rows of rounds up to `rounds_done`, those of a finished log included."""
        whole = self.path.exists()
        for part in self._parts.iterdir():
            # A part whose writing was cut short has a name of another kind.
            name = re.fullmatch(r"round-(\d+)\.parquet", part.name)
            # A joined log holds all of them.
            if whole or name is None or int(name[1]) > rounds_done:
                part.unlink()
        if whole:
            early = pq.read_table(self.path).filter(pc.field("round") <= rounds_done)
            if len(early):
                _write_whole(self._parts / "round-000000.parquet", [early])
            self.path.unlink()


def read_log(folder: RunFolder, **equal: Any) -> pa.Table | None:
    """The rows of a run's log, as far as its rounds are done; None where it has none.

    Parameters
    ----------
    folder : RunFolder
    **equal
        Column and the value that rows are to have there.
    """
    whole, parts = folder.path / TOKENS, folder.path / PARTS
    found = [whole] if whole.exists() else sorted(parts.glob("*.parquet"))
    if not found:
        return None
    chosen = [(name, "=", value) for name, value in equal.items()]
    tables = [pq.read_table(path, filters=chosen or None) for path in found]
    return pa.concat_tables(tables, promote_options="default")


def _write_whole(path: Path, tables: Iterable[pa.Table]) -> None:
    """Write the tables, in order, to a file that appears when it is complete."""
    partial = path.with_name(f".{path.name}.partial")
    with pq.ParquetWriter(partial, SCHEMA, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table.cast(SCHEMA))
    partial.replace(path)
