"""Memory of processes and models."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from typing import Any

import psutil
import torch
from transformers import DynamicCache, PreTrainedModel

READ = 16
"""Tokens read to see what one takes."""


def peak_mib() -> float:
    """Most resident memory this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident_mib() -> float:
    """Resident memory of this process now, in MiB."""
    return float(psutil.Process().memory_info().rss) / 2**20


def apart(measure: Callable[..., Any], *given: Any) -> Any:
    """Call it in a new process, whose memory nobody else has used."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, given)


@torch.inference_mode()
def key_value_bytes(model: PreTrainedModel) -> float:
    """Bytes of keys and values of a token."""
    cache = DynamicCache(config=model.config)
    read = torch.zeros(1, READ, dtype=torch.int64, device=model.device)
    model(read, past_key_values=cache, logits_to_keep=1)
    held = [part for layer in cache.layers for part in (layer.keys, layer.values)]
    return sum(part.nbytes for part in held if part is not None) / READ
