"""A column of messages in a dataset's file: whether it is one, and whether its chats are whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from fedhlm_app.data.files import DataError

ANSWERING = "assistant"
"""Role of who answers."""


def holds_messages(kind: pa.DataType) -> bool:
    """Tell whether a column's rows are lists of messages with `role` and `content`."""
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    entry = kind.value_type
    if not pa.types.is_struct(entry):
        return False
    return {"role", "content"} <= {entry.field(number).name for number in range(entry.num_fields)}


def written_messages(chats: Sequence[Any], name: str) -> list[str]:
    """Write the messages of each row as JSON.

    Parameters
    ----------
    chats : sequence
        Messages of each row.
    name : str
        Of the dataset, for an error.

    Raises
    ------
    DataError
        For a row that asks nothing.
    """
    found = []
    for row, messages in enumerate(chats):
        roles = [str(message["role"]) for message in messages or ()]
        asked = roles[:-1] if roles and roles[-1] == ANSWERING else roles
        if not asked:
            raise DataError(
                f"dataset = {name}: messages of row {row} are of {', '.join(roles) or 'nobody'}; "
                f"allowed are chats that ask, and end with an answer ('{ANSWERING}') or not"
            )
        if not all(isinstance(message["content"], str) for message in messages):
            raise DataError(f"dataset = {name}: messages of row {row}: each content has to be text")
        kept = [{"role": one["role"], "content": one["content"]} for one in messages]
        found.append(json.dumps(kept, ensure_ascii=False))
    return found
