"""Which columns of a dataset hold texts and labels, and labels as numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedhlm_app.data.files import DataError
from fedhlm_app.data.text import label_slug


def columns_of(
    present: list[str], text_column: str, label_column: str
) -> tuple[list[str], str | None]:
    """Find the columns of the text and the one of the label.

    Parameters
    ----------
    present : list of str
        The dataset's columns.
    text_column, label_column : str
        As asked for, see :func:`fedhlm_app.data.items.load_items`; empty for the usual ones.

    Returns
    -------
    tuple
        Columns of the text, and that of the label or None.

    Raises
    ------
    DataError
        Naming the setting and the dataset's columns.
    """
    texts = _find_columns(
        present,
        "text-columns",
        text_column,
        ("text", "title,description", "title,text", "messages"),
    )
    if not label_column:
        return texts, next((name for name in ("label", "topic", "class") if name in present), None)
    label = _find_columns(present, "label-column", label_column, ())
    if len(label) != 1:
        raise DataError(f"label-column = {label_column!r} names several columns; allowed is one")
    return texts, label[0]


def _find_columns(
    present: list[str], setting: str, asked: str, defaults: tuple[str, ...]
) -> list[str]:
    """Find the columns that a setting names, or the first default that is there."""
    for candidate in (asked,) if asked else defaults:
        columns = [column.strip() for column in candidate.split(",")]
        if all(column in present for column in columns):
            return columns
    wanted = repr(asked) if asked else f"not set, and none of {', '.join(defaults)} is there"
    allowed = ", ".join(present)
    raise DataError(f"{setting} = {wanted}; allowed are the dataset's columns {allowed}")


def encode_labels(
    raw: list[Any], names: tuple[str, ...], dataset: str
) -> tuple[list[int], tuple[str, ...]]:
    """Turn labels (numbers or words) into indices into slugs.

    Parameters
    ----------
    raw : list
        The column, integers or anything that is a word as text.
    names : tuple of str
        Names of integers, or the words that are allowed; empty for those of the column.
    dataset : str
        Its name, for a message.

    Returns
    -------
    tuple
        An index for each row, and the slugs.

    Raises
    ------
    DataError
        For a missing or unknown label, or names that become one slug.
    """
    if not raw:
        raise DataError(f"dataset = {dataset} is empty; at least one item is needed")
    missing = next(
        (row for row, value in enumerate(raw) if value is None or value != value or value == ""),
        None,
    )
    if missing is not None:
        raise DataError(f"dataset = {dataset} has no label in row {missing}; each row needs one")
    numeric = all(isinstance(value, (int, np.integer)) for value in raw)
    if numeric:
        slugs = tuple(map(label_slug, names)) or tuple(f"label{n}" for n in range(max(raw) + 1))
        allowed = range(len(slugs))
        bad = [value for value in raw if value not in allowed]
        encoded = [int(value) for value in raw]
    else:
        slugs = tuple(map(label_slug, names)) or tuple(sorted({label_slug(str(v)) for v in raw}))
        index = {slug: position for position, slug in enumerate(slugs)}
        bad = [value for value in raw if label_slug(str(value)) not in index]
        encoded = [index.get(label_slug(str(value)), -1) for value in raw]
    if bad:
        raise DataError(
            f"dataset = {dataset} has label {bad[0]!r}; allowed are "
            f"{', '.join(slugs)}" + (f" (0 to {len(slugs) - 1})" if numeric else "")
        )
    if len(set(slugs)) != len(slugs) or "" in slugs:
        raise DataError(
            f"label-names {names!r} of dataset {dataset} become {slugs!r} as lower-case letters "
            f"and digits; these must be distinct and not empty"
        )
    return encoded, slugs
