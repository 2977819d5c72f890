"""Rows as columns: one array for each thing that is said of every row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Self

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
        metadata={"dtype": dtype, "of": of, "fill": fill, "optional": optional},
    )


@dataclass(frozen=True, eq=False)
class Columns:
    """Base of dataclasses whose fields are all made by :func:`column`.

    Raises
    ------
    InvalidField
        If a column is no vector of integers, or not as long as the rows need it.
    """

    def __post_init__(self) -> None:
        found: dict[str, npt.NDArray[Any]] = {}
        for one in fields(self):
            values, about = np.asarray(getattr(self, one.name)), one.metadata
            if values.size and (values.ndim != 1 or values.dtype.kind not in "iub"):
                raise InvalidField(f"{one.name} must be a vector of integers")
            rows = len(next(iter(found.values()))) if found else values.size
            size = int(found[about["of"]].sum()) if about["of"] else rows
            if not values.size and not about["of"]:
                values = np.full(size, about["fill"], about["dtype"])
            elif values.size != size and not (about["optional"] and not values.size):
                raise InvalidField(f"{one.name} has {values.size} entries; {size} are needed")
            found[one.name] = values.astype(about["dtype"], copy=False).reshape(-1)
        for name, values in found.items():
            object.__setattr__(self, name, values)

    def __len__(self) -> int:
        first: npt.NDArray[Any] = getattr(self, fields(self)[0].name)
        return len(first)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        mine, theirs = vars(self), vars(other)
        return all(np.array_equal(mine[one.name], theirs[one.name]) for one in fields(self))

    __hash__ = None  # type: ignore[assignment]

    def select(self, rows: npt.NDArray[np.integer | np.bool_] | slice) -> Self:
        """Some of the rows, in the order given."""
        index = np.arange(len(self))[rows]
        if isinstance(rows, slice) and len(index) == len(self):
            return self
        chosen = {}
        for one in fields(self):
            values, of = getattr(self, one.name), one.metadata["of"]
            if not of:
                values = values[index]
            elif values.size:
                counts = getattr(self, of)
                values = values[entries((np.cumsum(counts) - counts)[index], counts[index])]
            chosen[one.name] = values
        return type(self)(**chosen)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The rows of several, one after the other."""
        if len(parts) == 1:
            return parts[0]
        names = [one.name for one in fields(cls)]
        return cls(**{n: np.concatenate([getattr(part, n) for part in parts]) for n in names})
