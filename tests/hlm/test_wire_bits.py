"""The codes that every message is made of."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlm.wire import (
    BitReader,
    BitWriter,
    InvalidField,
    TrailingData,
    TruncatedMessage,
    bit_reader,
    bit_writer,
    bits_needed,
)
from hlm.wire.bits import FEW

quick = settings(max_examples=80, deadline=None)


def written(*calls: tuple[str, tuple[object, ...]]) -> bytes:
    writer = BitWriter()
    for name, arguments in calls:
        getattr(writer, name)(*arguments)
    return writer.getvalue()


@pytest.mark.parametrize(("count", "width"), [(1, 0), (2, 1), (4096, 12), (4097, 13), (32_000, 15)])
def test_width_of_ids(count: int, width: int) -> None:
    assert bits_needed(count) == width


@quick
@given(st.integers(1, 48), st.data(), st.integers(0, 7))
def test_arrays_of_any_width_at_any_offset(width: int, data: st.DataObject, offset: int) -> None:
    values = data.draw(st.lists(st.integers(0, 2**width - 1), max_size=40))
    payload = written(("uint", (0, offset)), ("array", (np.array(values, np.int64), width)))
    assert len(payload) == (offset + width * len(values) + 7) // 8
    reader = BitReader(payload)
    reader.uint(offset)
    assert reader.array(len(values), width).tolist() == values
    reader.finish()


@quick
@given(st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 20)), max_size=30))
def test_lone_golomb_codes_equal_the_textbook(pairs: list[tuple[int, int]]) -> None:
    writer = BitWriter()
    text = ""
    for value, order in pairs:
        writer.golomb(value, order)
        digits = bin(value + 2**order)[2:]
        text += "0" * (len(digits) - order - 1) + digits
    payload = writer.getvalue()
    assert payload == int(text.ljust(8 * len(payload), "0") or "0", 2).to_bytes(len(payload), "big")
    reader = BitReader(payload)
    assert [reader.golomb(order) for _, order in pairs] == [value for value, _ in pairs]
    reader.finish()


@quick
@given(st.lists(st.integers(0, 2**40), max_size=60), st.integers(0, 12))
def test_golomb_arrays_are_as_long_as_lone_codes(values: list[int], order: int) -> None:
    payload = written(("golomb_array", (np.array(values, np.int64), order)))
    alone = BitWriter()
    for value in values:
        alone.golomb(value, order)
    assert len(payload) == len(alone.getvalue())
    assert BitReader(payload).golomb_array(len(values), order).tolist() == values


@quick
@given(
    st.one_of(
        st.lists(st.integers(0, 2**45), max_size=50),
        st.lists(st.integers(0, 3), max_size=300),
        st.lists(st.integers(1000, 1040), max_size=50),
        st.tuples(st.integers(0, 2**40), st.integers(1, 40)).map(lambda pair: [pair[0]] * pair[1]),
    ),
    st.booleans(),
)
def test_columns(values: list[int], increasing: bool) -> None:
    values = sorted(values) if increasing else values
    reader = BitReader(written(("column", (values, 5))))
    assert reader.column(len(values), 5).tolist() == values
    reader.finish()


def test_columns_take_the_shortest_form() -> None:
    sessions = np.arange(100_000, 100_064)
    assert len(written(("column", (sessions, 2)))) <= 4 + 64 * 3 // 8 + 3  # differences of 1
    assert len(written(("column", ([7] * 500, 2)))) == 1  # all equal
    near = 5_000 + np.random.default_rng(0).integers(0, 4, 64)
    assert len(written(("column", (near, 2)))) < 64 * 5 // 8 + 8  # signed differences


@quick
@given(st.integers(1, 5000), st.data())
def test_sorted_sets(universe: int, data: st.DataObject) -> None:
    members = sorted(data.draw(st.sets(st.integers(0, universe - 1), max_size=200)))
    payload = written(("sorted_set", (np.array(members, np.int64), universe)))
    reader = BitReader(payload)
    assert reader.sorted_set(len(members), universe).tolist() == members
    reader.finish()
    if members:  # Elias-Fano: at most two bits an entry above log2(universe / count)
        bound = len(members) * (2 + np.log2(universe / len(members))) + 1
        assert 8 * len(payload) <= bound + 8


@quick
@given(st.integers(0, 2**64 - 1))
def test_sized_integers(value: int) -> None:
    payload = written(("sized", (value,)))
    assert BitReader(payload).sized() == value
    assert len(payload) <= 9


def test_what_does_not_fit_is_refused_by_the_writer() -> None:
    writer = BitWriter()
    for call in (
        lambda: writer.uint(4, 2),
        lambda: writer.uint(-1, 2),
        lambda: writer.golomb(-1, 0),
        lambda: writer.sized(2**64),
        lambda: writer.sized(-1),
        lambda: writer.array(np.array([4]), 2),
        lambda: writer.array(np.array([-1]), 2),
        lambda: writer.array(np.array([1]), 49),
        lambda: writer.column([-1, 2]),
        lambda: writer.column([2**47]),
        lambda: writer.sorted_set(np.array([1, 1]), 4),
        lambda: writer.sorted_set(np.array([1, 4]), 4),
    ):
        with pytest.raises(InvalidField):
            call()


def test_reading_past_the_end_is_refused_before_anything_is_allocated() -> None:
    for read in (
        lambda reader: reader.uint(9),
        lambda reader: reader.array(1 << 60, 12),
        lambda reader: reader.bits(1 << 60),
        lambda reader: reader.golomb_array(1 << 60, 0),
        lambda reader: reader.sorted_set(1 << 58, 1 << 60),
    ):
        with pytest.raises(TruncatedMessage):
            read(BitReader(b"\xff"))


def test_malformed_codes_are_refused() -> None:
    zeros = bytes(100)
    with pytest.raises(InvalidField):
        BitReader(zeros).golomb(0)
    with pytest.raises(InvalidField):
        BitReader(zeros).golomb_array(1, 31)
    with pytest.raises(TruncatedMessage):
        BitReader(bytes(3)).golomb_array(1, 31)
    with pytest.raises(InvalidField):
        BitReader(bytes(6) + b"\x80" + zeros).golomb_array(1, 0)
    with pytest.raises(InvalidField):
        BitReader(b"\x90" + zeros).sized()  # nine bytes
    with pytest.raises(InvalidField):
        BitReader(zeros).sorted_set(5, 4)
    with pytest.raises(InvalidField):
        BitReader(b"\xf0").sorted_set(2, 3)  # the same member twice
    below_zero = BitWriter()
    below_zero.uint(2, 2)
    below_zero.uint(0, 5)
    below_zero.golomb_array(np.array([0, 1]), 0)
    with pytest.raises(InvalidField):
        BitReader(below_zero.getvalue()).column(2)


def test_a_message_ends_where_it_ends() -> None:
    payload = written(("uint", (1, 3)))
    BitReader(payload)
    for wrong in (payload + b"\0", bytes([payload[0] | 1])):
        reader = BitReader(wrong)
        assert reader.uint(3) == 1
        with pytest.raises(TrailingData):
            reader.finish()


@quick
@given(
    st.lists(st.integers(0, 2**40), min_size=1, max_size=FEW),
    st.integers(0, 47),
    st.integers(0, 6),
)
def test_a_few_values_have_the_bytes_that_many_would(
    values: list[int], shift: int, order: int
) -> None:
    column = np.array(values, np.int64) >> min(shift, 40)
    width = int(column.max()).bit_length()
    calls = (
        ("uint", (5, 3)),
        ("column", (column, order)),
        ("golomb_array", (column, order)),
        ("array", (column, width)),
        ("flag", (True,)),
    )
    payload = written(*calls)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bit_writer, "FEW", 0)
        assert written(*calls) == payload
    for few in (0, FEW):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bit_reader, "FEW", few)
            reader = BitReader(payload)
            assert reader.uint(3) == 5
            assert reader.column(column.size, order).tolist() == column.tolist()
            assert reader.golomb_array(column.size, order).tolist() == column.tolist()
            assert reader.array(column.size, width).tolist() == column.tolist()
            assert reader.flag()


@quick
@given(st.binary(max_size=40), st.integers(1, FEW), st.integers(0, 31))
def test_a_few_values_are_refused_as_many_would_be(payload: bytes, count: int, order: int) -> None:
    outcomes = []
    for few in (0, FEW):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bit_reader, "FEW", few)
            reader = BitReader(payload)
            try:
                values = reader.golomb_array(count, order).tolist()
            except (TruncatedMessage, InvalidField) as error:
                outcomes.append((type(error), 0))
            else:
                outcomes.append((values, reader.remaining))
    assert outcomes[0] == outcomes[1]
