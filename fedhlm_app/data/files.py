"""Rows of a local file, a folder or the hub, before anything is made of them.

Whatever a file is, a table or an error of one line comes of it that names the file.
"""

from __future__ import annotations

import csv
import gzip
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedhlm_app.models.sources import hub_problem
from fedhlm_app.settings.sources import DATA_SUFFIXES, looks_like_path

if TYPE_CHECKING:
    from datasets import Dataset

AG_NEWS_COLUMNS = ["class", "title", "description"]
NEAREST = {
    "train": ("train",),
    "validation": ("validation", "valid", "dev", "test"),
    "test": ("test", "validation", "valid", "dev"),
}
"""Without a file of its own, a split is read from the one that stands nearest to it."""

# What pandas makes of the first field where every row has one more than the header.
_SPARE_FIELDS = "__index_level_0__"


class DataError(ValueError):
    """A dataset cannot be read as the settings say."""


def is_local(dataset: str) -> bool:
    """Tell a path from a hub name: it exists, or it can only be meant as a path."""
    return Path(dataset).expanduser().exists() or looks_like_path(dataset)


def read_local(path: Path, split: str) -> tuple[Dataset, bool]:
    """Read a file, or a folder's file for the split, and tell whether it is AG News' own."""
    if not path.exists():
        raise DataError(
            f"dataset = {str(path)!r} does not exist; give a file, a folder or a hub name"
        )
    file = path if path.is_file() else _file_of_split(path, split)
    kind = _suffix(file)
    if not kind:
        raise DataError(
            f"dataset = '{file}' is of no known type; allowed are {', '.join(DATA_SUFFIXES)}"
        )
    if kind == ".parquet":
        return _read_files("parquet", file), False
    reader = "json" if kind.startswith(".jsonl") else "text" if kind == ".txt" else "csv"
    separator = "\t" if kind.startswith(".tsv") else ","
    try:
        first = _first_row(file, separator if reader == "csv" else None)
    except (OSError, EOFError, ValueError, csv.Error) as error:
        raise DataError(f"dataset = '{file}' cannot be read: {_reason(error)}") from error
    if not first:
        raise DataError(f"dataset = '{file}' is empty; at least one item is needed")
    if reader != "csv":
        return _read_files(reader, file), False
    if len(first) == 1 and ";" in first[0]:
        raise DataError(
            f"dataset = '{file}' has ';' between its columns; allowed: ',' (.csv), tabs (.tsv)"
        )
    options: dict[str, Any] = {"sep": separator, "keep_default_na": False}
    if len(first) == len(AG_NEWS_COLUMNS) and first[0] in {"1", "2", "3", "4"}:
        # AG News' own layout: no header, class 1 to 4, title, description.
        return _read_files("csv", file, column_names=AG_NEWS_COLUMNS, **options), True
    rows = _read_files("csv", file, **options)
    if _SPARE_FIELDS in rows.column_names:
        raise DataError(
            f"dataset = '{file}' has rows of more fields than its header: put texts that hold "
            f"{separator!r} between quotation marks"
        )
    return rows, False


def _first_row(file: Path, separator: str | None) -> list[str]:
    """First row of a text file, gzipped or not, that is not blank; empty without one."""
    opener = gzip.open if file.name.lower().endswith(".gz") else open
    with opener(file, "rt", encoding="utf-8", newline="") as opened:
        rows = csv.reader(opened, delimiter=separator) if separator else ([r] for r in opened)
        return next((row for row in rows if any(field.strip() for field in row)), [])


def _file_of_split(folder: Path, split: str) -> Path:
    """Find the one file of a folder whose name begins with the split's."""
    readable = sorted(file for file in folder.iterdir() if _suffix(file))
    for word in NEAREST[split]:
        named = [file for file in readable if file.name.lower().startswith(word)]
        if len(named) == 1:
            return named[0]
        if named:
            raise DataError(
                f"dataset = {str(folder)!r} holds several files for split {split!r}: "
                f"{', '.join(file.name for file in named)}; keep one"
            )
    raise DataError(
        f"dataset = {str(folder)!r} holds no file for split {split!r}; allowed are files named "
        f"{' or '.join(NEAREST[split])} with one of {', '.join(DATA_SUFFIXES)}"
    )


def _suffix(file: Path) -> str:
    """Give the known suffix of a file, empty if unknown."""
    matching = [suffix for suffix in DATA_SUFFIXES if file.name.lower().endswith(suffix)]
    return max(matching, key=len, default="")


def _read_files(kind: str, file: Path, **options: Any) -> Dataset:
    """Read a local file with one of the readers of `datasets`, without progress or log."""
    import datasets

    datasets.disable_progress_bars()
    told = datasets.logging.get_verbosity()
    # It logs what it then raises.
    datasets.logging.set_verbosity(logging.CRITICAL)
    try:
        return datasets.load_dataset(kind, data_files=[str(file)], split="train", **options)
    except (datasets.exceptions.DatasetsError, ValueError, OSError, EOFError) as error:
        if "corresponds to no data" in str(error):
            raise DataError(
                f"dataset = '{file}' holds no data below its header; at least one item is needed"
            ) from error
        # `datasets` says only that something went wrong; what, says the error it came from.
        raise DataError(f"dataset = '{file}' cannot be read: {_reason(error)}") from error
    finally:
        datasets.logging.set_verbosity(told)


def _reason(error: BaseException) -> str:
    """What went wrong first, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, UnicodeDecodeError):
        return f"it is no UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
    return " ".join(str(error).split()) or type(error).__name__


def read_hub(dataset: str, split: str) -> Dataset:
    """Read a dataset of the hub; the only branch that may use the network."""
    import datasets

    if problem := hub_problem():
        datasets.config.HF_HUB_OFFLINE = True  # its cache is read at once then
    for word in NEAREST[split]:
        try:
            return datasets.load_dataset(dataset, split=word)
        except ValueError as error:
            if "split" not in str(error):
                raise DataError(f"dataset = {dataset!r} unreadable: {_reason(error)}") from error
        except (OSError, datasets.exceptions.DatasetsError) as error:
            raise DataError(
                f"dataset = {dataset!r} is neither a file or folder here nor readable from the "
                f"hub: {problem or _reason(error)}; allowed are 'builtin', a path, or a hub name"
            ) from error
    raise DataError(f"dataset = {dataset!r} has no split for {split!r}; tried {NEAREST[split]}")
