from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from servers.edge.prints import NOBODY, FingerprintTable

SHOWN = st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 9), max_size=4)), max_size=12)


@given(SHOWN, st.integers(1, 5), st.booleans())
def test_common_is_what_another_device_holds(shown, quota, deferred):
    table = FingerprintTable(quota, deferred)
    held: dict[int, list[int]] = {}
    for client, prints in shown:
        table.show(client, np.array(prints, np.int64))
        for value in prints:
            mine = held.setdefault(client, [])
            mine[:] = [*(one for one in mine if one != value), value]
        held[client] = held.get(client, [])[-quota:]
    if deferred:
        assert not table.common(NOBODY, np.arange(10)).any()
        table.tick()
    for client in (*range(4), NOBODY):
        others = {value for other, mine in held.items() if other != client for value in mine}
        expected = [value in others for value in range(10)]
        assert table.common(client, np.arange(10)).tolist() == expected
        assert table.held(client).tolist() == sorted(held.get(client, []))
    assert len(table) == sum(map(len, held.values())) <= 4 * quota


def test_who_shows_nothing_any_more_is_forgotten():
    table = FingerprintTable(max_age=2)
    table.show(1, np.array([5]))
    for _ in range(2):
        table.tick()
        assert table.common(2, np.array([5])).all()
    table.tick()
    assert not table.common(2, np.array([5])).any() and len(table) == 0


def test_a_device_can_be_dropped():
    table = FingerprintTable()
    table.show(1, np.array([5, 6]))
    table.show(2, np.array([6]))
    table.drop_client(1)
    assert table.common(NOBODY, np.array([5, 6])).tolist() == [False, True]


@pytest.mark.parametrize("options", [{"quota": 0}, {"max_age": -1}])
def test_bad_settings_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        FingerprintTable(**options)
