"""A column of messages in a dataset's file: whether it is one, and whether its chats are whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from fedhlm_app.data.files import DataError


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
        For a row that does not end with an answer to something.
    """
    found = []
    for row, messages in enumerate(chats):
        roles = [str(message["role"]) for message in messages or ()]
        if len(roles) < 2 or roles[-1] != "assistant":
            raise DataError(
                f"dataset = {name}: messages of row {row} are of {', '.join(roles) or 'nobody'}; "
                "allowed are chats that end with an answer of the 'assistant'"
            )
        if not all(isinstance(message["content"], str) for message in messages):
            raise DataError(f"dataset = {name}: messages of row {row}: each content has to be text")
        kept = [{"role": one["role"], "content": one["content"]} for one in messages]
        found.append(json.dumps(kept, ensure_ascii=False))
    return found
