from __future__ import annotations

import numpy as np
import pytest

from hlm.arrays import joined, parted


def test_arrays_come_back_by_name_and_shape_as_views() -> None:
    arrays = {"threshold": np.array([0.5]), "router": np.arange(6.0).reshape(2, 3)}
    vector = joined(arrays)
    assert vector.tolist() == [0.5, 0, 1, 2, 3, 4, 5]
    back = parted(vector, arrays)
    assert list(back) == list(arrays)
    for name, value in arrays.items():
        np.testing.assert_array_equal(back[name], value)
    back["threshold"][:] = -1
    assert vector[0] == -1
    with pytest.raises(ValueError, match="allowed: 7"):
        parted(vector[:-1], arrays)
