"""A key-value cache of slots: one row of memory per session, written in place.

A session's token at position ``p`` lives in column ``p`` of its slot, whatever else is in the
batch. So sessions of different lengths share one forward pass without being re-padded, a
rolled-back token is simply written over, and who else is served changes a result by rounding only:
float sums follow the shape of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


@dataclass
class Placement:
    """Where the tokens of one forward pass go.

    Attributes
    ----------
    slots : torch.Tensor
        int64 [sessions], strictly increasing slot of each.
    rows, offsets, columns : torch.Tensor
        int64 [tokens]: whose token it is (an index into `slots`), its place among that session's
        new tokens, and the column it is written to.
    longest : int
        Most new tokens of a session.
    length : int
        Columns ``0 .. length - 1`` are handed to attention.
    """

    slots: torch.Tensor
    rows: torch.Tensor
    offsets: torch.Tensor
    columns: torch.Tensor
    longest: int
    length: int

    def __post_init__(self) -> None:
        first, last = int(self.slots[0]), int(self.slots[-1])
        adjacent = last - first + 1 == self.slots.numel()
        self.block: slice | None = slice(first, last + 1) if adjacent else None
        self.token_slots = self.slots[self.rows]


class SlotLayer(CacheLayerMixin):
    """Keys and values of one attention layer, [slots, heads, capacity, head size]."""

    is_sliding = False
    is_croppable = False
    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, owner: SlotCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.owner = owner

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate the memory once the number of heads and their size are known."""
        slots, capacity = self.owner.slots, self.owner.capacity
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = key_states.new_zeros(slots, key_states.shape[1], capacity, key_states.shape[3])
        self.values = value_states.new_zeros(
            slots, value_states.shape[1], capacity, value_states.shape[3]
        )
        self.is_initialized = True

    def grow(self, slots: int) -> None:
        """Enlarge to `slots` rows, keeping what is stored."""
        if not self.is_initialized:
            return
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(slots, *old.shape[1:])
            new[: old.shape[0]] = old
            setattr(self, name, new)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store keys and values of new tokens; return those of whole slots.

        Parameters
        ----------
        key_states, value_states : torch.Tensor
            [1, heads, tokens, size] packed, or [sessions, heads, longest, size] padded.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        placement = self.owner.placement
        where = (placement.token_slots, slice(None), placement.columns)
        # Advanced indices around a slice put the indexed axis first: [tokens, heads, size].
        self.keys[where] = key_states.transpose(1, 2).flatten(0, 1)
        self.values[where] = value_states.transpose(1, 2).flatten(0, 1)
        keys = self.keys[:, :, : placement.length]
        values = self.values[:, :, : placement.length]
        if placement.block is not None:  # a view, no copy
            return keys[placement.block], values[placement.block]
        return keys.index_select(0, placement.slots), values.index_select(0, placement.slots)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that attention sees."""
        return self.owner.placement.length, 0

    def get_seq_length(self) -> int:
        """Tokens seen: 0, since every row has a length of its own and positions are explicit."""
        return 0

    def get_max_length(self) -> int:
        """Most tokens a slot holds."""
        return self.owner.capacity


class SlotCache(Cache):
    """A Transformers cache whose rows are sessions; set `placement` before each forward pass.

    Parameters
    ----------
    layers : int
        Attention layers of the model.
    slots : int
        Rows allocated at first.
    capacity : int
        Tokens a row holds; the last column takes what padding writes and is never read.
    """

    placement: Placement

    def __init__(self, layers: int, slots: int, capacity: int) -> None:
        self.slots = slots
        self.capacity = capacity
        self.slot_layers = [SlotLayer(self) for _ in range(layers)]
        super().__init__(layers=list(self.slot_layers))

    def grow(self, slots: int) -> None:
        """Enlarge every layer to `slots` rows."""
        self.slots = slots
        for layer in self.slot_layers:
            layer.grow(slots)
