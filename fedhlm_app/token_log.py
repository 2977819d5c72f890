"""`tokens.parquet`: one row for every routed token, and the events TensorBoard reads.

Neither text nor token ids are in it: they do not leave a device for a log.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from fedhlm_app.runs import TOKENS, RunFolder
from fedhlm_app.summary import STAGES

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
    ]
)


class TokenLog:
    """Writes `tokens.parquet` batch by batch; a context manager.

    The file takes its name only when the log is closed without an error: a Parquet file that is
    half written cannot be read at all.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.path = folder.path / TOKENS
        self._partial = self.path.with_name(f".{TOKENS}.partial")
        self._writer = pq.ParquetWriter(self._partial, SCHEMA, compression="zstd")

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
        else:
            self._writer.close()
            self._partial.unlink()

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
        self._writer.write_table(table.cast(SCHEMA))

    def close(self) -> None:
        """Finish the file and give it its name."""
        self._writer.close()
        self._partial.replace(self.path)


def read_tokens(folder: RunFolder) -> Any:
    """Return the token log of a run as a `pyarrow.Table`."""
    return pq.read_table(folder.path / TOKENS)


def write_events(folder: RunFolder) -> Path | None:
    """Write the run's figures by round for TensorBoard, if TensorBoard is installed.

    Returns
    -------
    Path | None
        The folder of events inside the run folder, None without TensorBoard.
    """
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    events = folder.path / "events"
    with SummaryWriter(str(events)) as writer:
        for line in folder.metrics():
            for name, value in _flat(line):
                writer.add_scalar(name, value, line["round"])
    return events


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            yield from _flat(item, f"{name}/")
        elif isinstance(item, int | float) and not isinstance(item, bool) and name != "round":
            yield name, float(item)
