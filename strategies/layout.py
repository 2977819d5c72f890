"""Between Flower's named arrays and the one flat vector that is aggregated."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord

from strategies.aggregation import FloatArray

_HEADER_BYTES = 4096  # a NumPy file header is far shorter; anything longer is not one of ours


class UnreadableArray(ValueError):
    """The bytes of an array are not what its layout promises."""


@dataclass(frozen=True)
class Layout:
    """Names, shapes and dtypes of the arrays of a policy, and where each lies in the vector.

    A FedHLM policy is one array, ``policy [d]``; a model of any other Flower app may be many.
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
            if value.dtype.kind not in "fiu":
                raise ValueError(f"arrays[{name!r}]: dtype {value.dtype}; allowed: float or int")
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

    def unflatten(self, vector: FloatArray) -> dict[str, Array]:
        """Back to named arrays of the original shapes and dtypes."""
        arrays: dict[str, Array] = {}
        offset = 0
        for name, shape, dtype in zip(self.names, self.shapes, self.dtypes, strict=True):
            size = math.prod(shape)
            part = vector[offset : offset + size].reshape(shape)
            if np.dtype(dtype).kind != "f":
                part = np.rint(part)
            arrays[name] = Array(np.ascontiguousarray(part.astype(dtype)))
            offset += size
        return arrays


def decode(array: Array, shape: tuple[int, ...], kind: str = "f") -> np.ndarray:
    """Read an array that came over the network, trusting nothing it says about itself.

    `Array.numpy` allocates what the header asks for before it looks at the data, so the header is
    read first and compared with what is expected.

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
    stream = io.BytesIO(data[: _HEADER_BYTES * 2])
    try:
        version = np.lib.format.read_magic(stream)
        reader = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        found_shape, fortran, dtype = reader(stream, max_header_size=_HEADER_BYTES)
    except (ValueError, EOFError, TypeError) as error:
        raise UnreadableArray(f"not a NumPy array: {error}") from error
    if dtype.kind != kind:
        raise UnreadableArray(f"dtype {dtype}; allowed: kind {kind!r}")
    if found_shape != shape:
        raise UnreadableArray(f"shape {found_shape}; allowed: {shape}")
    body = data[stream.tell() :]
    if len(body) != math.prod(shape) * dtype.itemsize:
        raise UnreadableArray(
            f"{len(body)} bytes of data; allowed: {math.prod(shape) * dtype.itemsize}"
        )
    flat = np.frombuffer(body, dtype=dtype)
    return flat.reshape(shape, order="F" if fortran else "C")
