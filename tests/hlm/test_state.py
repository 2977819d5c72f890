from __future__ import annotations

import numpy as np
import pytest

from hlm.state import state_from_bytes, state_to_bytes


def test_everything_comes_back_bit_for_bit() -> None:
    state = {
        "array": np.array([[0.1, np.nextafter(1, 2)], [np.inf, -0.0]]),
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 3)),
        "nothing": None,
        "list": [1, 2.5, "text", {"deep": np.int64(7)}],
    }
    back = state_from_bytes(state_to_bytes(state))
    assert back["array"].tobytes() == state["array"].tobytes()  # type: ignore[union-attr]
    assert back["flags"].dtype == np.bool_
    assert back["empty"].shape == (0, 3)
    assert back["list"] == [1, 2.5, "text", {"deep": 7}]
    assert back["nothing"] is None
    back["array"][0, 0] = 5  # writable, as the strategies expect


@pytest.mark.parametrize("bad", [{"f": print}, {1: 2}, {"a": np.array(["x"])}])
def test_other_values_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="state"):
        state_to_bytes(bad)


@pytest.mark.parametrize("data", [b"", b"[1]", b"\xff", b'{"a": {"__array__": "AAAA"}}'])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        state_from_bytes(data)
