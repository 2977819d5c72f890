"""Between Flower's named arrays and the one flat vector that is aggregated."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord

from hlm.arrays import FloatArray

_MAGIC = b"\x93NUMPY"
_HEADER_BYTES = 4096  # a NumPy file header is far shorter; anything longer is not one of ours
_HEADER = re.compile(
    rb"\{'descr': '(?P<dtype>[<>]f[248]|[<>][iu][248]|\|[biu]1)', "
    rb"'fortran_order': (?P<fortran>True|False), "
    rb"'shape': \((?P<shape>(?:\d{1,18}(?:, \d{1,18}|,){0,31})?)\), \} *\n"
)


class UnreadableArray(ValueError):
    """The bytes of an array are not what its layout promises."""


@dataclass(frozen=True)
class Layout:
    """Names, shapes and dtypes of the arrays of a policy, and where each lies in the vector.

    A FedHLM policy is a ``threshold`` and what else is learned; a model may be many arrays.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]

    @staticmethod
    def of(arrays: ArrayRecord) -> Layout:
        """Layout of `arrays`; raises ValueError when there is none or one is not numeric."""
        if not arrays:
            raise ValueError("arrays: empty; allowed: at least one array")
        values = {name: array.numpy() for name, array in arrays.items()}
        for name, value in values.items():
            if value.dtype.kind not in "fiub":
                raise ValueError(
                    f"arrays[{name!r}]: dtype {value.dtype}; allowed: float, int or bool"
                )
        return Layout(
            tuple(values),
            tuple(value.shape for value in values.values()),
            tuple(value.dtype.str for value in values.values()),
        )

    @property
    def size(self) -> int:
        """Length d of the flat vector."""
        return sum(math.prod(shape) for shape in self.shapes)

    def flatten(self, arrays: ArrayRecord) -> FloatArray:
        """One float64 vector [d]; extra arrays in the record are left out.

        Raises
        ------
        KeyError
            When an array is missing.
        UnreadableArray
            When one has another shape or kind of dtype than this layout.
        """
        parts = [
            decode(arrays[name], shape, np.dtype(dtype).kind).ravel()
            for name, shape, dtype in zip(self.names, self.shapes, self.dtypes, strict=True)
        ]
        return np.concatenate(parts).astype(np.float64)

    def part(self, vector: FloatArray, name: str) -> FloatArray:
        """The entries [n] of one array in a vector [d]: a view.

        Raises
        ------
        ValueError
            When there is no such array.
        """
        if name not in self.names:
            raise ValueError(f"array: {name!r}; allowed: {', '.join(self.names)}")
        sizes = [math.prod(shape) for shape in self.shapes]
        index = self.names.index(name)
        return vector[sum(sizes[:index]) : sum(sizes[: index + 1])]

    def in_words(self) -> str:
        """Names and shapes, as they stand in checkpoints and errors."""
        return ", ".join(f"{n} {list(s)}" for n, s in zip(self.names, self.shapes, strict=True))

    def unflatten(self, vector: FloatArray) -> dict[str, Array]:
        """Back to named arrays of the original shapes and dtypes."""
        arrays: dict[str, Array] = {}
        offset = 0
        for name, shape, dtype in zip(self.names, self.shapes, self.dtypes, strict=True):
            size = math.prod(shape)
            part = vector[offset : offset + size].reshape(shape)
            if np.dtype(dtype).kind != "f":
                part = np.rint(part)
            arrays[name] = Array(np.asarray(part.astype(dtype)))
            offset += size
        return arrays


def decode(array: Array, shape: tuple[int, ...], kind: str = "f") -> np.ndarray:
    """Read an array that came over the network, trusting nothing it says about itself.

    NumPy's own reader evaluates the header as Python and allocates what it asks for before it
    looks at the data: fuzzing makes it fail in a dozen ways. Here only the headers that NumPy
    writes for plain numbers match, and nothing is allocated before shape and length agree.

    Parameters
    ----------
    array : Array
    shape : tuple of int
        The only shape allowed.
    kind : str
        NumPy dtype kind allowed (``f`` or ``i``).

    Raises
    ------
    UnreadableArray
        Naming what was found and what is allowed.
    """
    data = bytes(array.data)
    version, offset = data[6:8], 10
    if data[:6] != _MAGIC or version not in (b"\x01\x00", b"\x02\x00"):
        raise UnreadableArray("not a NumPy array of format 1.0 or 2.0")
    if version == b"\x02\x00":
        offset = 12
    start = offset + int.from_bytes(data[8:offset], "little")
    header = _HEADER.fullmatch(data[offset:start]) if start <= _HEADER_BYTES else None
    if header is None:
        raise UnreadableArray("not the header of a plain NumPy array")
    found_shape = tuple(int(size) for size in header["shape"].split(b",") if size.strip())
    dtype = np.dtype(header["dtype"].decode())
    if dtype.kind != kind:
        raise UnreadableArray(f"dtype {dtype}; allowed: kind {kind!r}")
    if found_shape != shape:
        raise UnreadableArray(f"shape {found_shape}; allowed: {shape}")
    body = memoryview(data)[start:]
    if len(body) != math.prod(shape) * dtype.itemsize:
        raise UnreadableArray(
            f"{len(body)} bytes of data; allowed: {math.prod(shape) * dtype.itemsize}"
        )
    flat = np.frombuffer(body, dtype=dtype)
    return flat.reshape(shape, order="F" if header["fortran"] == b"True" else "C")
