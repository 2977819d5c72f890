"""Texts, with labels or without, from the built-in corpus, the hub, or files: one table, cleaned.

Everything is checked before any model is loaded, and a message names the setting, its value and
what is allowed. Local data needs no network.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fedhlm_app.data.columns import columns_of, encode_labels
from fedhlm_app.data.files import (
    AG_NEWS_COLUMNS,
    NEAREST,
    DataError,
    is_local,
    read_hub,
    read_local,
)
from fedhlm_app.data.messages import holds_messages, written_messages
from fedhlm_app.data.text import CLEANING_RULES, join_text
from fedhlm_assets import asset_path

BUILTIN = "builtin"
"""Name of the corpus that comes with FedHLM."""

Split = Literal["train", "validation", "test"]

logger = logging.getLogger(__name__)

_TOPICS = ("world", "sports", "business", "scitech")


# Compared by identity, so that it can be the key of a cache.
@dataclass(frozen=True, eq=False)
class Items:
    """Cleaned texts with labels.

    Attributes
    ----------
    name : str
        The dataset as asked for, with its split.
    table : pyarrow.Table
        Columns ``text`` (str, never empty) and ``label`` (int, index into ``label_names``).
        Large datasets lie on disk and are mapped into memory.
    label_names : tuple of str
        Lower-case letters and digits only, so that a name is also its label token. Empty where
        the dataset has no labels; each item's label is 0 then.
    chat : bool
        The texts are messages of chats, as JSON (:mod:`fedhlm_app.data.chats`).
    """

    name: str
    table: pa.Table
    label_names: tuple[str, ...]
    chat: bool = False

    def __len__(self) -> int:
        """Give the number of items."""
        return int(self.table.num_rows)

    def texts(self, rows: Sequence[int] | np.ndarray | None = None) -> list[str]:
        """Give the texts of some rows, in the order asked for (all rows by default)."""
        column = self.table["text"]
        if rows is None:
            return [str(text) for text in column.to_pylist()]
        # One by one: `take` would first join the pieces of a large column in memory.
        return [str(column[int(row)].as_py()) for row in rows]

    def subset(self, rows: Sequence[int] | np.ndarray) -> Items:
        """Give some rows as items of their own, in the order asked for."""
        name = f"{self.name}, {len(rows)} rows"
        columns = {"text": self.texts(rows), "label": self.labels(rows)}
        return Items(name, pa.table(columns), self.label_names, self.chat)

    def labels(self, rows: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Give the labels of some rows, int64 [rows]."""
        labels = np.asarray(self.table["label"].to_numpy(), dtype=np.int64)
        return labels if rows is None else labels[np.asarray(rows, dtype=np.int64)]


def load_items(
    dataset: str = BUILTIN,
    split: Split = "train",
    *,
    text_column: str = "",
    label_column: str = "",
    label_names: Sequence[str] = (),
    labelled: bool = True,
) -> Items:
    """Read a dataset once per process.

    Parameters
    ----------
    dataset : str
        ``"builtin"``; a file or a folder of csv, csv.gz, tsv, jsonl, parquet or txt (a text on
        each line); or a hub name.
        A folder's file is chosen by split (``train.csv.gz``, ``validation.csv.gz``); the
        built-in corpus and a single file have one split only. A csv of three columns without
        header, the first 1 to 4, is read as AG News' own files.
    split : {"train", "validation", "test"}
        Which part.
    text_column : str
        One or several columns, comma separated, joined in that order; by default ``text``, or
        ``title,description``, or ``title,text``, or ``messages``, whichever is there. A column of
        lists of messages, each with ``role`` and ``content``, makes chats.
    label_column : str
        By default ``label``, ``topic`` or ``class``, whichever is there; without any of them
        the texts have no labels.
    label_names : sequence of str
        Names of integer labels 0, 1, ..., or the accepted ones among labels that are words;
        found in the data by default.
    labelled : bool
        Labels are asked for. If not, texts whose labels are no good have none.

    Returns
    -------
    Items
        Cached; rows with an empty text are left out.

    Raises
    ------
    DataError
        For a missing file or column, an unknown label, or a dataset without items.
    """
    return _load_items(dataset, split, text_column, label_column, tuple(label_names), labelled)


@lru_cache(maxsize=8)
def _load_items(
    dataset: str,
    split: str,
    text_column: str,
    label_column: str,
    label_names: tuple[str, ...],
    labelled: bool,
) -> Items:
    """Read, find the columns, and clean."""
    if split not in NEAREST:
        raise DataError(f"split = {split!r} is unknown; allowed are {', '.join(NEAREST)}")
    if dataset == BUILTIN:
        return _load_builtin(text_column, label_column, label_names)
    name, is_ag_news = f"{dataset} ({split})", False
    if is_local(dataset):
        raw, is_ag_news = read_local(Path(dataset).expanduser(), split)
        label_names = label_names or (_TOPICS if is_ag_news else ())
    else:
        raw = read_hub(dataset, split)
    texts, label = columns_of(list(raw.column_names), text_column, label_column)
    kinds = {column: raw.features.arrow_schema.field(column).type for column in texts}
    chat = len(texts) == 1 and holds_messages(kinds[texts[0]])
    for column, kind in kinds.items():
        if pa.types.is_nested(kind) and not chat:
            raise DataError(
                f"text-columns = {column!r} holds {kind} in each row; allowed is text, or one "
                "column of lists of messages with role and content"
            )
    labels = [0] * len(raw)
    names: tuple[str, ...] = ()
    if label is not None:
        if not label_names:
            label_names = tuple(getattr(raw.features[label], "names", None) or ())
        values = list(raw[label])
        if is_ag_news and label == AG_NEWS_COLUMNS[0]:
            values = [value - 1 for value in values]  # its classes count from 1
        try:
            labels, names = encode_labels(values, label_names, name)
        except DataError as error:
            if labelled:
                raise
            logger.info("texts are read without labels: %s", error)
    # `map` keeps its result on disk and maps it into memory: the clients of a simulation read
    # one cleaned copy rather than clean the whole dataset once each.
    if chat:
        written = pa.array(written_messages(raw[texts[0]], name), pa.string())
        table = pa.table({"text": written, "label": pa.array(labels, pa.int64())})
        return replace(_items(name, table, names), chat=True)
    cleaned = raw.map(
        _clean_batch,
        batched=True,
        remove_columns=raw.column_names,
        fn_kwargs={"columns": texts, "rules": CLEANING_RULES},
    )
    table = cleaned.with_format("arrow")[:].select(["text"])
    return _items(name, table.append_column("label", pa.array(labels, pa.int64())), names)


def _load_builtin(text_column: str, label_column: str, label_names: tuple[str, ...]) -> Items:
    """Read the built-in corpus without `datasets`, which takes a second to import."""
    rows: list[dict[str, str]] = []
    for topic in _TOPICS:
        lines = asset_path(f"corpus/{topic}.jsonl").read_text(encoding="utf-8").splitlines()
        rows += [json.loads(line) for line in lines if line.strip()]
    raw = {column: [row[column] for row in rows] for column in rows[0]}
    texts, label = columns_of(list(raw), text_column or "title,text", label_column or "topic")
    labels, names = encode_labels(raw[label or "topic"], label_names or _TOPICS, BUILTIN)
    return items_from_rows(BUILTIN, _clean_batch(raw, texts, CLEANING_RULES)["text"], labels, names)


def has_splits(dataset: str) -> bool:
    """Tell whether a dataset may hold several splits; the built-in one and a file do not."""
    return dataset != BUILTIN and not Path(dataset).expanduser().is_file()


def items_from_rows(
    name: str, texts: Sequence[str], labels: Sequence[int], label_names: Sequence[str]
) -> Items:
    """Build items from clean texts, leaving out empty ones.

    Raises
    ------
    DataError
        If nothing is left.
    """
    columns = {
        "text": pa.array(list(texts), pa.string()),
        "label": pa.array([int(label) for label in labels], pa.int64()),
    }
    return _items(name, pa.table(columns), tuple(label_names))


def _items(name: str, table: pa.Table, label_names: tuple[str, ...]) -> Items:
    """Leave out empty texts."""
    has_text = pc.not_equal(table["text"], "")
    kept = int(pc.sum(has_text).as_py() or 0)
    if not kept:
        raise DataError(f"dataset = {name} holds no text; at least one item is needed")
    return Items(name, table if kept == len(table) else table.filter(has_text), label_names)


def _clean_batch(
    batch: dict[str, list[Any]], columns: list[str], rules: int
) -> dict[str, list[str]]:
    """Clean and join some rows; ``rules`` only tells caches of other rules apart."""
    rows = zip(*(batch[column] for column in columns), strict=True)
    return {"text": [join_text([str(value or "") for value in row]) for row in rows]}
