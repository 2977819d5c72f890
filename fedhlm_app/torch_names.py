"""Names of devices and number formats in settings, as torch knows them."""

from __future__ import annotations

import torch


def torch_dtype(name: str) -> torch.dtype:
    """``float32`` and the like.

    Raises
    ------
    ValueError
        When torch has no such floating-point format.
    """
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype = {name!r}: allowed are float32, float64, float16 and bfloat16")
    return found


def torch_device(name: str) -> str:
    """A device name, ``auto`` resolved to the best one there is."""
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
