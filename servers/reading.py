"""One forward pass over the new tokens of many sessions, packed or padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from servers.packed_attention import NAME as PACKED_ATTENTION
from servers.packed_attention import packed
from servers.packed_linear import packed_twin
from servers.slots import Placement, SlotCache

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Pending:
    """New tokens of one session.

    Attributes
    ----------
    slot : int
        Its row of the key-value cache.
    first : int
        Position of the first of them.
    tokens : numpy.ndarray
        int64 [n], n >= 1.
    wanted : numpy.ndarray
        int64 [m] increasing positions in ``first + 1 .. first + n`` whose law is asked for.
    """

    slot: int
    first: int
    tokens: IntArray
    wanted: IntArray


class Reader:
    """Feeds pending tokens to a model, without padding where the model allows it.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Any decoder-only model.
    cache : SlotCache
        Key-value memory, one slot a session.
    max_context : int
        Columns of a slot that are read.

    Attributes
    ----------
    packed : bool
        Whether tokens are read packed.
    """

    def __init__(self, model: PreTrainedModel, cache: SlotCache, max_context: int) -> None:
        model = packed_twin(model)
        self.model = model
        self.cache = cache
        self.max_context = max_context
        self.packed = use_packed_attention(model)
        self._additive_mask = model.config._attn_implementation == "eager"
        # Half precision and accelerators are better off with fused attention.
        self._few = model.dtype == torch.float32 and model.device.type == "cpu"

    def read(self, rows: Sequence[Pending], length: int) -> torch.Tensor:
        """Feed all rows in one pass.

        Parameters
        ----------
        rows : sequence of Pending
            In increasing order of slot.
        length : int
            Columns of the slots that hold anything.

        Returns
        -------
        torch.Tensor
            float32 [wanted places of all rows, vocab], row after row.
        """
        counts = np.array([len(row.tokens) for row in rows], np.int64)
        first = np.array([row.first for row in rows], np.int64)
        positions = first[:, None] + np.arange(int(counts.max()))
        visible = torch.from_numpy(np.arange(length) <= positions[:, None, :, None])
        visible = visible.to(self.model.device)
        read = self._read_packed if self.packed else self._read_padded
        return read(rows, counts, first, visible)

    def _read_packed(
        self, rows: Sequence[Pending], counts: IntArray, first: IntArray, visible: torch.Tensor
    ) -> torch.Tensor:
        """Feed the tokens of all rows as one row without padding; logits [wanted, vocab]."""
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        owner = np.repeat(np.arange(len(rows)), counts)
        offsets = np.arange(len(owner)) - starts[owner]
        tokens = np.concatenate([row.tokens for row in rows])
        wanted = np.concatenate(
            [row.wanted - 1 - row.first + start for row, start in zip(rows, starts, strict=True)]
        )
        device = self.model.device
        positions = torch.from_numpy(first[owner] + offsets).to(device)
        placement = Placement(
            slots=torch.tensor([row.slot for row in rows], device=device),
            rows=torch.from_numpy(owner).to(device),
            offsets=torch.from_numpy(offsets).to(device),
            columns=positions,
            longest=visible.shape[2],
            length=visible.shape[3],
        )
        self.cache.placement = placement
        with packed(placement):
            output = self.model(
                input_ids=torch.from_numpy(tokens)[None].to(device),
                attention_mask=_added(visible) if self._few else visible,
                position_ids=positions[None],
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=torch.from_numpy(wanted).to(device),
            )
        logits: torch.Tensor = output.logits[0].float()
        return logits

    def _read_padded(
        self, rows: Sequence[Pending], counts: IntArray, first: IntArray, visible: torch.Tensor
    ) -> torch.Tensor:
        """Feed the rows padded on the right to the longest; logits [wanted, vocab]."""
        longest = visible.shape[2]
        tokens = np.zeros((len(rows), longest), np.int64)
        for line, row in zip(tokens, rows, strict=True):
            line[: len(row.tokens)] = row.tokens
        owner, offsets = (axis.ravel() for axis in np.indices(tokens.shape))
        device = self.model.device
        positions = torch.from_numpy(first[:, None] + np.arange(longest)).to(device)
        self.cache.placement = Placement(
            slots=torch.tensor([row.slot for row in rows], device=device),
            rows=torch.from_numpy(owner).to(device),
            offsets=torch.from_numpy(offsets).to(device),
            # What padding writes goes to the last column, which is never read.
            columns=positions.clamp(max=self.max_context).flatten(),
            longest=longest,
            length=visible.shape[3],
        )
        wanted = [row.wanted - 1 - row.first for row in rows]
        kept = np.unique(np.concatenate(wanted))
        output = self.model(
            input_ids=torch.from_numpy(tokens).to(device),
            attention_mask=self._mask(visible),
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

    def _mask(self, visible: torch.Tensor) -> torch.Tensor:
        if not self._additive_mask:
            return visible
        lowest = torch.finfo(self.model.dtype).min
        return torch.zeros_like(visible, dtype=self.model.dtype).masked_fill(~visible, lowest)


def _added(visible: torch.Tensor) -> torch.Tensor:
    """What is added to the scores of attention: 0 where a query sees a key, else -inf."""
    return torch.zeros(visible.shape).masked_fill_(~visible, -torch.inf)


def use_packed_attention(model: PreTrainedModel) -> bool:
    """Switch a model to `servers.packed_attention`, where it can be; whether it was.

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
