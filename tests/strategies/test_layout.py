from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from strategies.layout import Layout, UnreadableArray, decode


def test_many_arrays_become_one_vector_and_come_back() -> None:
    record = ArrayRecord(
        {
            "weight": Array(np.arange(6, dtype=np.float32).reshape(2, 3)),
            "bias": Array(np.array([0.5])),
            "seen": Array(np.array(7, dtype=np.int64)),
        }
    )
    layout = Layout.of(record)
    assert layout.size == 8
    vector = layout.flatten(record)
    np.testing.assert_array_equal(vector, [0, 1, 2, 3, 4, 5, 0.5, 7])
    back = layout.unflatten(vector + 0.4)
    assert back["weight"].dtype == "float32"
    assert back["seen"].numpy() == 7  # integers are rounded
    assert Layout.of(ArrayRecord(back)) == layout
    np.testing.assert_allclose(back["bias"].numpy(), [0.9])


@given(
    arrays(
        st.sampled_from([np.float16, np.float32, np.float64, ">f8", np.int8, np.int64, "u2"]),
        array_shapes(min_dims=0, max_dims=4, min_side=0),
        elements=st.integers(0, 100),
    ),
    st.booleans(),
)
def test_decode_equals_numpys_reader(value: np.ndarray, fortran: bool) -> None:
    array = Array(np.array(value, order="F") if fortran else value)
    np.testing.assert_array_equal(decode(array, value.shape, value.dtype.kind), array.numpy())


@pytest.mark.parametrize("value", [np.array([b"x"]), np.array([1j])])
def test_other_dtypes_are_refused(value: np.ndarray) -> None:
    with pytest.raises(UnreadableArray):
        decode(Array(value), (1,))
    with pytest.raises(ValueError, match="dtype"):
        Layout.of(ArrayRecord({"policy": Array(value)}))


def test_no_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Layout.of(ArrayRecord())


def test_every_number_comes_back_in_its_dtype() -> None:
    dtypes = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"]
    shapes = [(), (0,), (3,), (2, 0), (1, 2, 3)]
    values = {
        f"{dtype}-{number}": np.ones(shape, dtype)
        for dtype in dtypes
        for number, shape in enumerate(shapes)
    }
    record = ArrayRecord({name: Array(np.asarray(value)) for name, value in values.items()})
    layout = Layout.of(record)
    again = layout.unflatten(layout.flatten(record))
    assert list(again) == list(values)
    for name, value in values.items():
        assert again[name].numpy().dtype == value.dtype
        np.testing.assert_array_equal(again[name].numpy(), value)


def test_one_array_is_found_by_its_name() -> None:
    layout = Layout(("bias", "weights", "threshold"), ((), (2, 2), (1,)), ("<f8",) * 3)
    vector = np.arange(6.0)
    assert layout.part(vector, "bias").tolist() == [0]
    assert layout.part(vector, "weights").tolist() == [1, 2, 3, 4]
    layout.part(vector, "threshold")[:] = -1
    assert vector[5] == -1
    with pytest.raises(ValueError, match="'policy'; allowed: bias, weights, threshold"):
        layout.part(vector, "policy")
