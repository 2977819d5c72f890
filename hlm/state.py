"""A strategy's state as bytes: JSON with arrays in it, no pickle, the same back bit for bit."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

State = dict[str, Any]
"""NumPy arrays, numbers, strings, None, and lists and dicts of these."""

_ARRAY = "__array__"


def state_to_bytes(state: Mapping[str, Any]) -> bytes:
    """Encode a `state_dict`: arrays, numbers, strings, booleans, None, lists and dicts of these.

    Raises
    ------
    ValueError
        On anything else, or a dict with a key that is not a string.
    """
    return json.dumps(_encode(state), sort_keys=True).encode()


def state_from_bytes(data: bytes) -> State:
    """Decode what `state_to_bytes` made.

    Raises
    ------
    ValueError
        On bytes that are no such state.
    """
    try:
        state = _decode(json.loads(data))
    except (KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"state: not readable ({error}); allowed: bytes of state_to_bytes"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"state: a {type(state).__name__}; allowed: a dict")
    return cast(State, state)


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fiub":
            raise ValueError(f"state: array of dtype {value.dtype}; allowed: numbers and booleans")
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {_ARRAY: data, "dtype": value.dtype.str, "shape": list(value.shape)}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or key == _ARRAY:
                raise ValueError(f"state: key {key!r}; allowed: strings other than {_ARRAY!r}")
        return {key: _encode(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(entry) for entry in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"state: a {type(value).__name__}; allowed: arrays, numbers, strings")


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        if _ARRAY in value:
            flat = np.frombuffer(base64.b64decode(value[_ARRAY]), dtype=np.dtype(value["dtype"]))
            return flat.reshape(value["shape"]).copy()
        return {key: _decode(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_decode(entry) for entry in value]
    return value
