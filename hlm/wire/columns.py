"""Rows as columns: one array for each thing that is said of every row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import Field, dataclass, field
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from hlm.arrays import IntArray
from hlm.wire.errors import InvalidField


def entries(starts: IntArray, counts: IntArray) -> IntArray:
    """Indices ``starts[i] .. starts[i] + counts[i] - 1`` of every i, one i after the other."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + counts, counts)


def column(
    dtype: npt.DTypeLike = np.int64, of: str = "", *, fill: int = 0, optional: bool = False
) -> Any:
    """A field of :class:`Columns`; what is not given is ``fill`` in every row.

    Parameters
    ----------
    dtype
        Of its entries.
    of
        The column that says how many entries each row has; without, each has one.
    fill
        The entry of a row where the column is left out.
    optional
        Whether it may be empty although `of` counts entries.
    """
    return field(
        default_factory=partial(np.empty, 0, dtype),
        metadata={"about": (np.dtype(dtype), of, fill, optional)},
    )


class _Column(NamedTuple):
    name: str
    dtype: np.dtype[Any]
    of: str
    fill: int
    optional: bool


@dataclass(frozen=True, eq=False)
class Columns:
    """Base of dataclasses whose fields are all made by :func:`column`.

    Raises
    ------
    InvalidField
        If a column is no vector of integers, or not as long as the rows need it.
    """

    _columns: ClassVar[tuple[_Column, ...]]

    def __init_subclass__(cls) -> None:
        own = vars(cls).items()
        cls._columns = tuple(_Column(n, *f.metadata["about"]) for n, f in own if type(f) is Field)

    def __post_init__(self) -> None:
        own, sizes = vars(self), {}  # entries by the column that counts them; "": rows
        for name, dtype, of, fill, optional in self._columns:
            values = own[name]
            if type(values) is not np.ndarray or values.dtype != dtype or values.ndim != 1:
                values = np.asarray(values)
                if values.size and (values.ndim != 1 or values.dtype.kind not in "iub"):
                    raise InvalidField(f"{name} must be a vector of integers")
                values = values.astype(dtype, copy=False).reshape(-1)
            if of not in sizes:
                sizes[of] = int(np.add.reduce(own[of])) if of else values.size
            if values.size != sizes[of]:
                if values.size or (of and not optional):
                    raise InvalidField(f"{name} has {values.size} entries; {sizes[of]} are needed")
                if not of:
                    values = np.full(sizes[of], fill, dtype)
            own[name] = values

    def __len__(self) -> int:
        return len(vars(self)[self._columns[0].name])

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        mine, theirs = vars(self), vars(other)
        return all(np.array_equal(mine[n.name], theirs[n.name]) for n in self._columns)

    __hash__ = None  # type: ignore[assignment]

    def select(self, rows: npt.NDArray[np.integer | np.bool_] | slice) -> Self:
        """Some of the rows, in the order given."""
        index = np.arange(len(self))[rows]
        if isinstance(rows, slice) and len(index) == len(self):
            return self
        chosen = {}
        for name, _, of, _, _ in self._columns:
            values = getattr(self, name)
            if not of:
                values = values[index]
            elif values.size:
                counts = getattr(self, of)
                values = values[entries((np.cumsum(counts) - counts)[index], counts[index])]
            chosen[name] = values
        return type(self)(**chosen)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The rows of several, one after the other."""
        if len(parts) == 1:
            return parts[0]
        names = [one.name for one in cls._columns]
        return cls(**{n: np.concatenate([getattr(part, n) for part in parts]) for n in names})
