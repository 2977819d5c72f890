"""Attention over key-value slots for texts that are packed without padding.

Nearly all the work of a model is per token and does not care whose token it is. So the new tokens
of all sessions go through it as one row, and only attention, a small part of the cost, is done
session by session, on queries padded to the longest.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from servers.slots import Placement

NAME = "sdpa_slots"
"""What the implementation is called in a model's configuration."""

_active = threading.local()


@contextmanager
def packed(placement: Placement) -> Iterator[None]:
    """Within it, this thread's models with attention `NAME` read packed tokens."""
    _active.placement = placement
    try:
        yield
    finally:
        _active.placement = None


def slot_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention, on packed queries if the engine says so.

    Parameters
    ----------
    module : torch.nn.Module
        The attention layer.
    query : torch.Tensor
        [1, heads, tokens, size] of all sessions' new tokens.
    key, value : torch.Tensor
        [sessions, key heads, length, size], whole slots.
    attention_mask : torch.Tensor
        bool [sessions, 1, longest, length], True where a query sees a key.
    **kwargs
        As for Transformers' `sdpa_attention_forward`.

    Returns
    -------
    torch.Tensor
        [1, tokens, heads, size].
    """
    placement: Placement | None = getattr(_active, "placement", None)
    if placement is None:
        plain: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **kwargs
        )
        return plain
    tokens = query[0].transpose(0, 1)  # [tokens, heads, size]
    rows, offsets, longest = placement.rows, placement.offsets, placement.longest
    if longest == 1:
        queries = tokens.unsqueeze(2)
    else:
        queries = tokens.new_zeros(len(placement.slots), longest, *tokens.shape[1:])
        queries[rows, offsets] = tokens
        queries = queries.transpose(1, 2)
    kwargs["is_causal"] = False
    found, _ = sdpa_attention_forward(module, queries, key, value, attention_mask, **kwargs)
    # [sessions, longest, heads, size] back to one row of tokens
    return (found[:, 0] if longest == 1 else found[rows, offsets]).unsqueeze(0), None


AttentionInterface.register(NAME, slot_attention)
# Outside the engine the model must get the masks it would get with "sdpa".
AttentionMaskInterface.register(NAME, sdpa_mask)
