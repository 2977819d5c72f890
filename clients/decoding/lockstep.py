"""Decoding a device's prompts in lockstep with the written-out forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
import torch
from transformers import PreTrainedModel

from clients.decoding.lockstep_memory import LockstepMemory
from clients.decoding.row_memory import RowMemory
from clients.decoding.steps import Step, left_padded, shortened
from hlm.arrays import IntArray
from hlm.reading.fused import FusedDecoder, can_fuse


class FusedLockstepDecoder:
    """`LockstepDecoder` with the written-out forward pass, for the models that have one.

    Parameters
    ----------
    decoder : FusedDecoder
        The model.
    prompts : sequence of numpy.ndarray
        int64 [length_i] token ids, each at least one token.
    hidden : bool
        Also return last hidden states.

    Raises
    ------
    ValueError
        When there is no prompt, or an empty one.
    """

    def __init__(
        self, decoder: FusedDecoder, prompts: Sequence[IntArray], hidden: bool = False
    ) -> None:
        tokens, mask, positions = (torch.from_numpy(part) for part in left_padded(prompts))
        self._decoder, self._hidden = decoder, hidden
        self._prompts = tokens, positions
        self._positions = self._prompts[1][:, -1]
        self._memory = LockstepMemory(decoder.shape, mask)

    @torch.inference_mode()
    def start(self) -> Step:
        """Read the prompts; what comes after each of them."""
        tokens, positions = self._prompts
        count = tokens.shape[1]
        last = torch.arange(count - 1, tokens.numel(), count)
        return self._read(tokens.flatten(), positions.flatten(), last)

    @torch.inference_mode()
    def step(self, tokens: IntArray) -> Step:
        """Append one token to every row (int64 [rows]); what comes next."""
        self._memory.next_column()
        self._positions = self._positions + 1
        every = torch.arange(len(tokens))
        return self._read(torch.from_numpy(np.ascontiguousarray(tokens)), self._positions, every)

    def keep_rows(self, rows: IntArray) -> None:
        """Drop every row but these (int64, in order)."""
        index = torch.from_numpy(rows)
        self._memory.keep_rows(index)
        self._positions = self._positions[index]

    def _read(self, tokens: torch.Tensor, positions: torch.Tensor, wanted: torch.Tensor) -> Step:
        memory = self._memory
        hidden = self._decoder.read(tokens, positions, memory.length, memory, wanted)
        return Step(self._decoder.logits(hidden), hidden if self._hidden else None)


class FusedRollbackDecoder:
    """`LockstepDecoder` of texts that shrink, with the written-out forward pass.

    Rows that append nothing cost nothing.

    Parameters
    ----------
    decoder, prompts, hidden : as for `FusedLockstepDecoder`

    Attributes
    ----------
    lengths : numpy.ndarray
        int64 [rows], tokens read of each text.

    Raises
    ------
    ValueError
        When there is no prompt, or an empty one.
    """

    def __init__(
        self, decoder: FusedDecoder, prompts: Sequence[IntArray], hidden: bool = False
    ) -> None:
        self._decoder, self._hidden = decoder, hidden
        self._tokens, mask, _ = left_padded(prompts)
        self._counts = mask.sum(axis=1)
        self._memory = RowMemory(decoder.shape, len(prompts))
        self.lengths = np.zeros(len(prompts), np.int64)

    def start(self) -> Step:
        """Read the prompts; what comes after each of them."""
        return self.read(self._tokens, self._counts)

    def step(self, tokens: IntArray) -> Step:
        """Append one token to every row (int64 [rows]); what comes next."""
        return self.read(tokens[:, None], np.ones(len(tokens), np.int64))

    @torch.inference_mode()
    def read(self, tokens: IntArray, counts: IntArray) -> Step:
        """Append a few tokens to each row, as `LockstepDecoder.read`; what comes next."""
        width, rows = tokens.shape[1], np.flatnonzero(counts)
        places, length = self._memory.place(rows, self.lengths[rows], counts[rows])
        new = tokens[np.arange(width) >= width - counts[:, None]]
        wanted = torch.from_numpy(np.cumsum(counts[rows]) - 1)
        hidden = self._decoder.read(
            torch.from_numpy(new), torch.from_numpy(places), length, self._memory, wanted
        )
        self.lengths = self.lengths + counts
        logits = self._decoder.logits(hidden)
        if len(rows) < len(counts):
            logits, hidden = (_spread(part, rows, len(counts)) for part in (logits, hidden))
        return Step(logits, hidden if self._hidden else None)

    def take_back(self, counts: IntArray) -> None:
        """Forget the last tokens of each row, as `LockstepDecoder.take_back`."""
        self.lengths = shortened(self.lengths, counts)

    def keep_rows(self, rows: IntArray) -> None:
        """Drop every row but these (int64, in order)."""
        self._memory.keep_rows(torch.from_numpy(rows))
        self.lengths = self.lengths[rows]


def _spread(part: torch.Tensor, rows: IntArray, count: int) -> torch.Tensor:
    """Rows of a step as those (int64, different) of `count`; the others mean nothing."""
    return part.new_zeros(count, part.shape[1]).index_copy_(0, torch.from_numpy(rows), part)


# The devices of a process share a model, and so its written-out form.
_known: WeakKeyDictionary[PreTrainedModel, FusedDecoder | None] = WeakKeyDictionary()


def fused_form(model: PreTrainedModel) -> FusedDecoder | None:
    """The model written out; None where it is not one of those that can be."""
    if model not in _known:
        _known[model] = FusedDecoder(model) if can_fuse(model) else None
    return _known[model]
