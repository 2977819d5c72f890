"""Keys and values of texts that grow and shrink each for itself, for the fused decoder."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hlm.arrays import IntArray
from hlm.reading.fused import Shape


class RowMemory:
    """The token at position p of a row is in column p: what was taken back is written over.

    Parameters
    ----------
    shape : Shape
        Of the model.
    rows : int
        Texts.
    """

    def __init__(self, shape: Shape, rows: int) -> None:
        self._shape = shape
        self._heads = torch.arange(shape.key_heads)
        self._stored = [torch.zeros(rows, shape.key_heads, 0, shape.size)] * (2 * shape.layers)
        self._is_grouped = shape.heads != shape.key_heads

    def keep_rows(self, index: Tensor) -> None:
        """Drop every row but these (int64, in order)."""
        self._stored = [tensor.index_select(0, index) for tensor in self._stored]

    def place(self, rows: IntArray, first: IntArray, counts: IntArray) -> tuple[IntArray, int]:
        """Say where the tokens of the next forward pass go, row after row.

        Parameters
        ----------
        rows, first, counts : numpy.ndarray
            int64 [n]: different rows, increasing; the place of the first new token of each; and
            how many there are, >= 1.

        Returns
        -------
        places : numpy.ndarray
            int64 [tokens], of each token in its text.
        length : int
            Columns that attention sees.
        """
        width, self._length = int(counts.max()), int((first + counts).max())
        self._grow()
        whole, _, capacity, _ = self._stored[0].shape
        offsets = np.arange(width)
        places = first[:, None] + offsets
        there = offsets < counts[:, None]
        lines = np.repeat(rows, counts)[:, None] * self._shape.key_heads + self._heads.numpy()
        self._lines = torch.from_numpy((lines * capacity + places[there][:, None]).ravel())
        self._chosen = None if len(rows) == whole else torch.from_numpy(rows)
        self._size = len(rows), width
        # Where not all have as many new tokens, they are spread over a padded batch.
        self._spread = None if there.all() else torch.from_numpy(np.flatnonzero(there))
        self._visible: Tensor | None = None
        if width > 1 or (first + counts < self._length).any():
            visible = np.arange(self._length) <= places[:, None, :, None]
            self._visible = torch.from_numpy(visible)
        return places[there], self._length

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `hlm.reading.fused.Memory`."""
        shape, (rows, width) = self._shape, self._size
        seen = []
        for stored, new in zip(self._stored[2 * layer : 2 * layer + 2], (key, value), strict=True):
            stored.view(-1, shape.size).index_copy_(0, self._lines, new.reshape(-1, shape.size))
            whole = stored[:, :, : self._length]
            seen.append(whole if self._chosen is None else whole.index_select(0, self._chosen))
        if self._spread is not None:
            padded = query.new_zeros(rows * width, *query.shape[1:])
            query = padded.index_copy_(0, self._spread, query)
        found = functional.scaled_dot_product_attention(
            query.view(rows, width, *query.shape[1:]).transpose(1, 2),
            seen[0],
            seen[1],
            self._visible,
            enable_gqa=self._is_grouped,
        )
        found = found.transpose(1, 2).reshape(rows * width, -1)
        return found if self._spread is None else found.index_select(0, self._spread)

    def _grow(self) -> None:
        """Make room, and some more, so that it is not moved at every step."""
        capacity = self._stored[0].shape[2]
        if self._length > capacity:
            more = 2 * self._length + 16 - capacity
            self._stored = [functional.pad(old, (0, 0, 0, more)) for old in self._stored]
