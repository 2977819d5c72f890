"""Keys and values in slots, one a session, for the fused decoder."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hlm.reading.fused import Shape
from servers.engine.packed_attention import MOST_SCORES, attention_of_few, bias_of_heads
from servers.engine.slots import Placement


class SlotMemory:
    """Sessions of different lengths in one forward pass; see `servers.engine.slots`.

    Parameters
    ----------
    shape : Shape
        Of the model.
    slots, capacity : int
        Sessions there is room for at first, and tokens of each.
    """

    def __init__(self, shape: Shape, slots: int, capacity: int) -> None:
        self.shape, self.slots, self.capacity = shape, slots, capacity
        size = (slots, shape.key_heads, capacity, shape.size)
        self._keys = [_zeros(size) for _ in range(shape.layers)]
        self._values = [_zeros(size) for _ in range(shape.layers)]
        self._heads = torch.arange(shape.key_heads)
        self._is_grouped = shape.heads != shape.key_heads

    def grow(self, slots: int) -> None:
        """Enlarge to `slots` sessions, keeping what is stored."""
        for tensors in (self._keys, self._values):
            for layer, old in enumerate(tensors):
                tensors[layer] = _zeros((slots, *old.shape[1:]))
                tensors[layer][: self.slots] = old
        self.slots = slots

    def place(self, placement: Placement, visible: Tensor) -> None:
        """Say where the tokens of the next forward pass go.

        Parameters
        ----------
        placement : Placement
            Their slots and columns.
        visible : torch.Tensor
            bool [sessions, 1, longest, length]: which columns a session's new tokens see.
        """
        shape, longest, length = self.shape, placement.longest, placement.length
        self._placement = placement
        lines = placement.token_slots[:, None] * shape.key_heads + self._heads
        self._lines = (lines * self.capacity + placement.columns[:, None]).flatten()
        self._places = placement.rows * longest + placement.offsets
        mask = torch.zeros(visible.shape).masked_fill_(~visible, -torch.inf)
        self._is_few = shape.heads * length * len(placement.slots) * longest <= MOST_SCORES
        self._bias = bias_of_heads(mask, shape.heads, shape.key_heads) if self._is_few else mask

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `hlm.reading.fused.Memory`."""
        placement, size = self._placement, self.shape.size
        keys, values = self._keys[layer], self._values[layer]
        keys.view(-1, size).index_copy_(0, self._lines, key.reshape(-1, size))
        values.view(-1, size).index_copy_(0, self._lines, value.reshape(-1, size))
        keys, values = keys[:, :, : placement.length], values[:, :, : placement.length]
        if placement.block is not None:  # a view, no copy
            keys, values = keys[placement.block], values[placement.block]
        else:
            keys = keys.index_select(0, placement.slots)
            values = values.index_select(0, placement.slots)
        sessions, longest = len(placement.slots), placement.longest
        if longest == 1:
            queries = query.unsqueeze(2)
        else:
            queries = query.new_zeros(sessions * longest, *query.shape[1:])
            queries.index_copy_(0, self._places, query)
            queries = queries.view(sessions, longest, *query.shape[1:]).transpose(1, 2)
        if self._is_few:
            found = attention_of_few(queries, keys, values, self._bias, None)
        else:
            found = functional.scaled_dot_product_attention(
                queries, keys, values, self._bias, enable_gqa=self._is_grouped
            ).transpose(1, 2)
        if longest == 1:
            return found.reshape(sessions, -1)
        return found.reshape(sessions * longest, -1).index_select(0, self._places)


def _zeros(size: tuple[int, ...]) -> Tensor:
    """float32 zeros that take no memory, nor time, where nothing has been written yet."""
    return torch.from_numpy(np.zeros(size, np.float32))
