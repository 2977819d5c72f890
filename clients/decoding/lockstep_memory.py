"""Keys and values of texts that grow in lockstep, for the fused decoder."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from hlm.reading.fused import Shape


class LockstepMemory:
    """Rows padded on the left, so that all of them write to the same column.

    Parameters
    ----------
    shape : Shape
        Of the model.
    mask : torch.Tensor
        bool [rows, longest], True where a prompt has a token.
    """

    def __init__(self, shape: Shape, mask: Tensor) -> None:
        self.shape = shape
        self.length = 0
        self._mask = mask
        self._is_padded = not bool(mask.all())
        self._keys = [self._room(mask.shape[1]) for _ in range(shape.layers)]
        self._values = [self._room(mask.shape[1]) for _ in range(shape.layers)]
        self._is_grouped = shape.heads != shape.key_heads
        self._begin(mask.shape[1])

    def next_column(self) -> None:
        """Get ready for one more token of every row."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=1)
        self._begin(1)

    def keep_rows(self, index: Tensor) -> None:
        """Drop every row but these (int64, in order)."""
        self._mask = self._mask[index]
        for tensors in (self._keys, self._values):
            tensors[:] = [tensor.index_select(0, index) for tensor in tensors]

    def _room(self, columns: int) -> Tensor:
        # Room to grow without moving what is there at every step.
        size = (len(self._mask), self.shape.key_heads, 2 * columns + 16, self.shape.size)
        return torch.zeros(size)

    def _begin(self, count: int) -> None:
        self._new = slice(self.length, self.length + count)
        self.length += count
        if self.length > self._keys[0].shape[2]:
            for tensors in (self._keys, self._values):
                for layer, old in enumerate(tensors):
                    tensors[layer] = self._room(self.length)
                    tensors[layer][:, :, : old.shape[2]] = old
        # One token a row sees everything; a whole prompt what came before.
        self._is_causal = count > 1 and not self._is_padded
        self._visible: Tensor | None = None
        if self._is_padded:
            visible = self._mask[:, None, None, :].expand(-1, 1, count, -1)
            if count > 1:
                earlier = torch.ones(count, count, dtype=torch.bool).tril()
                # Padding sees itself: a query that sees nothing would find no number.
                visible = (visible & earlier) | torch.eye(count, dtype=torch.bool)
            self._visible = visible

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `hlm.reading.fused.Memory`; tokens are row after row."""
        rows, count = len(self._mask), self._new.stop - self._new.start
        keys, values = self._keys[layer], self._values[layer]
        keys[:, :, self._new] = _by_head(key, rows, count)
        values[:, :, self._new] = _by_head(value, rows, count)
        found = functional.scaled_dot_product_attention(
            _by_head(query, rows, count),
            keys[:, :, : self.length],
            values[:, :, : self.length],
            self._visible,
            is_causal=self._is_causal,
            enable_gqa=self._is_grouped,
        )
        return found.transpose(1, 2).reshape(rows * count, -1)


def _by_head(tensor: Tensor, rows: int, count: int) -> Tensor:
    """[rows * count, heads, size] to [rows, heads, count, size]."""
    return tensor.view(rows, count, *tensor.shape[1:]).transpose(1, 2)
