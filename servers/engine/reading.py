"""How an engine reads the new tokens of many sessions: by slots, packed or padded, or plainly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from transformers import PreTrainedModel

from hlm.arrays import IntArray
from hlm.reading.plain import Passage, PlainReading
from servers.engine.packed_attention import NAME as PACKED_ATTENTION
from servers.engine.packed_attention import packed
from servers.engine.slots import Placement, SlotCache

Masks = torch.Tensor | dict[str, torch.Tensor]


class Reader(Protocol):
    """Feeds what is new of each session's text to a model.

    Attributes
    ----------
    most_waste : int
        Tokens of padding that cost about as much as another forward pass.
    """

    most_waste: int

    def grow(self, slots: int) -> None:
        """Make room for sessions up to slot ``slots - 1``."""
        ...

    def read(self, rows: Sequence[Passage]) -> torch.Tensor:
        """Feed all rows, in increasing order of slot (`Passage.key`).

        Returns
        -------
        torch.Tensor
            float32 [wanted places of all rows, vocab], row after row.
        """
        ...


class PlainReader:
    """Reads sessions one of the plain ways, slow and right for any model.

    Parameters
    ----------
    reading : PlainReading
        One of those of `hlm.reading.plain`.
    """

    # A row costs its own length here, whoever else is in the group.
    most_waste = 1 << 62

    def __init__(self, reading: PlainReading) -> None:
        self._reading = reading

    def grow(self, slots: int) -> None:
        """Nothing is allocated beforehand."""

    def read(self, rows: Sequence[Passage]) -> torch.Tensor:
        """See `Reader`."""
        return torch.cat([found.logits for found in self._reading.read(rows)])


class SlotReader:
    """Reads all sessions in one pass, with a key-value cache of slots.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Its memory must be a list of keys and values a layer, and its attention see all of them.
    slots : int
        Sessions there is room for at first.
    max_context : int
        Columns of a slot that are read.
    is_packed : bool
        Without padding; the model must use `servers.engine.packed_attention`.
    """

    def __init__(
        self, model: PreTrainedModel, slots: int, max_context: int, is_packed: bool
    ) -> None:
        self.model = model
        layers = int(model.config.get_text_config().num_hidden_layers)
        self.cache = SlotCache(layers, slots, max_context + 1)
        self.max_context = max_context
        self.is_packed = is_packed
        # A short batch costs about as much as 48 tokens of a longer one, so rows of different
        # length are split only where padding would waste more. Packed, padding costs attention
        # only, about a twentieth.
        self.most_waste = 960 if is_packed else 48
        self._kinds = _kinds_of_attention(model.config.get_text_config(), max_context)
        # Half precision and accelerators are better off with fused attention.
        few = is_packed and model.dtype == torch.float32 and model.device.type == "cpu"
        self._is_added = few or model.config._attn_implementation == "eager"
        self._lowest = -torch.inf if few else torch.finfo(model.dtype).min

    def grow(self, slots: int) -> None:
        """See `Reader`."""
        self.cache.grow(slots)

    def read(self, rows: Sequence[Passage]) -> torch.Tensor:
        """See `Reader`."""
        counts = np.array([len(row.new) for row in rows], np.int64)
        first = np.array([row.first for row in rows], np.int64)
        longest = int(counts.max())
        # Columns of the slots that hold anything.
        length = min(int(first.max()) + longest, self.max_context)
        positions = first[:, None] + np.arange(longest)
        read = self._read_packed if self.is_packed else self._read_padded
        return read(rows, counts, first, self._masks(positions, length), longest, length)

    def _read_packed(
        self,
        rows: Sequence[Passage],
        counts: IntArray,
        first: IntArray,
        masks: Masks,
        longest: int,
        length: int,
    ) -> torch.Tensor:
        """Feed the tokens of all rows as one row without padding; logits [wanted, vocab]."""
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        owner = np.repeat(np.arange(len(rows)), counts)
        offsets = np.arange(len(owner)) - starts[owner]
        tokens = np.concatenate([row.new for row in rows])
        wanted = np.concatenate(
            [row.wanted - 1 - row.first + start for row, start in zip(rows, starts, strict=True)]
        )
        device = self.model.device
        positions = torch.from_numpy(first[owner] + offsets).to(device)
        placement = Placement(
            slots=torch.tensor([row.key for row in rows], device=device),
            rows=torch.from_numpy(owner).to(device),
            offsets=torch.from_numpy(offsets).to(device),
            columns=positions,
            longest=longest,
            length=length,
        )
        self.cache.placement = placement
        with packed(placement):
            output = self.model(
                input_ids=torch.from_numpy(tokens)[None].to(device),
                attention_mask=masks,
                position_ids=positions[None],
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=torch.from_numpy(wanted).to(device),
            )
        logits: torch.Tensor = output.logits[0].float()
        return logits

    def _read_padded(
        self,
        rows: Sequence[Passage],
        counts: IntArray,
        first: IntArray,
        masks: Masks,
        longest: int,
        length: int,
    ) -> torch.Tensor:
        """Feed the rows padded on the right to the longest; logits [wanted, vocab]."""
        tokens = np.zeros((len(rows), longest), np.int64)
        for line, row in zip(tokens, rows, strict=True):
            line[: len(row.new)] = row.new
        owner, offsets = (axis.ravel() for axis in np.indices(tokens.shape))
        device = self.model.device
        positions = torch.from_numpy(first[:, None] + np.arange(longest)).to(device)
        self.cache.placement = Placement(
            slots=torch.tensor([row.key for row in rows], device=device),
            rows=torch.from_numpy(owner).to(device),
            offsets=torch.from_numpy(offsets).to(device),
            # What padding writes goes to the last column, which is never read.
            columns=positions.clamp(max=self.max_context).flatten(),
            longest=longest,
            length=length,
        )
        wanted = [row.wanted - 1 - row.first for row in rows]
        kept = np.unique(np.concatenate(wanted))
        output = self.model(
            input_ids=torch.from_numpy(tokens).to(device),
            attention_mask=masks,
            position_ids=positions.clamp(max=self.max_context - 1),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=torch.from_numpy(kept).to(device),
        )
        logits = output.logits.float()
        chosen = [
            logits[line, torch.from_numpy(np.searchsorted(kept, places)).to(device)]
            for line, places in enumerate(wanted)
        ]
        return torch.cat(chosen)

    def _masks(self, positions: IntArray, length: int) -> Masks:
        """What each kind of attention sees: [rows, 1, longest, length], bool or added to scores.

        One mask where the model has one kind of attention, else a mask for each by name.
        """
        columns, queries = np.arange(length), positions[:, None, :, None]
        masks = {}
        for kind, size in self._kinds.items():
            seen = columns <= queries
            if kind == "sliding_attention":
                seen &= columns > queries - size
            elif kind == "chunked_attention":
                seen &= columns // size == queries // size
            mask = torch.from_numpy(seen).to(self.model.device)
            if self._is_added:
                scores = torch.zeros(mask.shape, dtype=self.model.dtype, device=mask.device)
                mask = scores.masked_fill_(~mask, self._lowest)
            masks[kind] = mask
        return next(iter(masks.values())) if len(masks) == 1 else masks


def _kinds_of_attention(config: Any, max_context: int) -> dict[str, int]:
    """Kinds of attention layers that differ within a context, with the tokens each looks back."""
    looks_back = {
        "full_attention": max_context,
        "sliding_attention": getattr(config, "sliding_window", None) or max_context,
        "chunked_attention": getattr(config, "attention_chunk_size", None) or max_context,
    }
    layers = getattr(config, "layer_types", None) or ["sliding_attention"]
    used = {kind: size for kind, size in looks_back.items() if kind in layers}
    if all(size >= max_context for size in used.values()):
        return {"full_attention": max_context}
    return used


def use_packed_attention(model: PreTrainedModel) -> bool:
    """Switch a model to `servers.engine.packed_attention`, where it can be; whether it was.

    The model works as before outside an engine. Models that don't use "sdpa" attention through
    Transformers' interface, or that cap attention scores, are read padded instead.
    """
    config = model.config.get_text_config()
    if model.config._attn_implementation == PACKED_ATTENTION:
        return True
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    if model.config._attn_implementation != "sdpa" or capped:
        return False
    model.set_attn_implementation(PACKED_ATTENTION)
    return bool(model.config._attn_implementation == PACKED_ATTENTION)
