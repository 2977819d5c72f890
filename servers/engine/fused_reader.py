"""Reading the new tokens of many sessions with the written-out forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from hlm.reading.fused import FusedDecoder
from hlm.reading.plain import Passage
from servers.engine.slot_memory import SlotMemory
from servers.engine.slots import Placement


class FusedReader:
    """Reads all sessions in one pass, packed; see `servers.engine.reading.Reader`.

    Parameters
    ----------
    decoder : FusedDecoder
        The model.
    slots : int
        Sessions there is room for at first.
    max_context : int
        Tokens of a session.
    """

    # Padding costs attention only, about a twentieth of a token.
    most_waste = 960

    def __init__(self, decoder: FusedDecoder, slots: int, max_context: int) -> None:
        self._decoder = decoder
        self._memory = SlotMemory(decoder.shape, slots, max_context)
        self._max_context = max_context

    def grow(self, slots: int) -> None:
        """See `Reader`."""
        self._memory.grow(slots)

    def read(self, rows: Sequence[Passage]) -> torch.Tensor:
        """See `Reader`."""
        first = np.array([row.first for row in rows], np.int64)
        counts = np.array([len(row.text) for row in rows], np.int64) - first
        starts, longest = np.cumsum(counts) - counts, int(counts.max())
        owner = np.repeat(np.arange(len(rows)), counts)
        offsets = np.arange(len(owner)) - starts[owner]
        columns = first[owner] + offsets
        # As many columns as in `SlotReader`: the last bits of a softmax depend on it.
        length = min(int(first.max()) + longest, self._max_context)
        placement = Placement(
            slots=torch.tensor([row.key for row in rows]),
            rows=torch.from_numpy(owner),
            offsets=torch.from_numpy(offsets),
            columns=torch.from_numpy(columns),
            longest=longest,
            length=length,
        )
        visible = np.arange(length) <= (first[:, None] + np.arange(longest))[:, None, :, None]
        self._memory.place(placement, torch.from_numpy(visible))
        before = np.repeat(starts - first - 1, [len(row.wanted) for row in rows])
        wanted = np.concatenate([row.wanted for row in rows]) + before
        tokens = np.concatenate([row.text[row.first :] for row in rows])
        hidden = self._decoder.read(
            torch.from_numpy(tokens),
            placement.columns,
            length,
            self._memory,
            torch.from_numpy(wanted),
        )
        return self._decoder.logits(hidden)
