"""Weights stored small: 8-bit rows with one fp16 scale per group, or fp16 as they are.

A matrix is cut, row by row, into groups of ``group_size`` neighbouring weights. A group keeps
one scale s = max|w| / 127 in fp16 and its weights as round(w / s) in int8, so that the error of
a weight is at most s / 2 (plus fp16 rounding of s). Matrices whose rows cannot be cut evenly,
vectors, and whatever ``keep`` names stay fp16.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

PACKED_FORMAT = "fedhlm-int8-groups-1"
"""Written into the safetensors header; another value is refused on reading."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
_LEVELS = 127
_INTEGERS = ".int8"
_SCALES = ".scale"
# The smallest normal fp16: a group of zeros, or of weights too small for fp16, still has a scale.
_SMALLEST_SCALE = 2.0**-14


def pack_state(
    state: Mapping[str, torch.Tensor], group_size: int, keep: Collection[str] = ()
) -> dict[str, torch.Tensor]:
    """Pack named weights.

    Parameters
    ----------
    state : mapping of str to Tensor
        Floating-point weights of any shape.
    group_size : int
        Weights that share one scale, at least 1. 0 keeps everything fp16.
    keep : collection of str
        Names of weights that stay fp16.

    Returns
    -------
    dict of str to Tensor
        ``NAME`` (fp16), or ``NAME.int8`` (int8, the weight's shape) with ``NAME.scale``
        (fp16 [rows, columns / group_size]).

    Raises
    ------
    ValueError
        If ``group_size`` is negative or a weight is not finite.
    """
    if group_size < 0:
        raise ValueError(f"group_size must be 0 or more, got {group_size}")
    packed: dict[str, torch.Tensor] = {}
    for name, weight in state.items():
        if not torch.isfinite(weight).all():
            raise ValueError(f"weight {name!r} holds values that are not finite")
        even = weight.ndim == 2 and group_size > 0 and weight.shape[1] % group_size == 0
        if not even or name in keep:
            packed[name] = weight.to(torch.float16).contiguous()
            continue
        groups = weight.to(torch.float32).reshape(len(weight), -1, group_size)
        # Rounding is against the scale as stored, or its fp16 error would come on top.
        scale = (groups.abs().amax(dim=2) / _LEVELS).clamp_min(_SMALLEST_SCALE).to(torch.float16)
        integers = (groups / scale.to(torch.float32)[:, :, None]).round().clamp(-_LEVELS, _LEVELS)
        packed[name + _INTEGERS] = integers.flatten(1).to(torch.int8).contiguous()
        packed[name + _SCALES] = scale.contiguous()
    return packed


def unpack_state(packed: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Turn packed weights back into float32 weights under their own names.

    Parameters
    ----------
    packed : mapping of str to Tensor
        What :func:`pack_state` gave.

    Returns
    -------
    dict of str to Tensor
        Float32 weights.

    Raises
    ------
    ValueError
        If integers come without scales.
    """
    state: dict[str, torch.Tensor] = {}
    for name, stored in packed.items():
        if name.endswith(_SCALES):
            continue
        if not name.endswith(_INTEGERS):
            state[name] = stored.to(torch.float32)
            continue
        weight_name = name.removesuffix(_INTEGERS)
        if weight_name + _SCALES not in packed:
            raise ValueError(f"packed weight {weight_name!r} has integers but no scales")
        scale = packed[weight_name + _SCALES].to(torch.float32)
        groups = stored.to(torch.float32).reshape(*scale.shape, -1)
        state[weight_name] = (groups * scale[:, :, None]).flatten(1)
    return state


def pack_model(
    source: Path,
    target: Path,
    group_size: int = 0,
    keep: Collection[str] = (),
    tokenizer: bool = True,
) -> int:
    """Pack a saved Transformers model into another folder.

    Parameters
    ----------
    source : Path
        Folder with ``config.json`` and ``model.safetensors``.
    target : Path
        Folder to write; its own ``config.json`` and ``model.safetensors`` are replaced.
    group_size, keep
        As for :func:`pack_state`.
    tokenizer : bool
        Whether to copy the tokenizer's files too, where ``source`` has them.

    Returns
    -------
    int
        Bytes of the packed weights file.

    Raises
    ------
    FileNotFoundError
        If ``source`` lacks either file.
    """
    weights = source / "model.safetensors"
    for needed in (weights, source / "config.json"):
        if not needed.is_file():
            raise FileNotFoundError(f"no {needed.name} in {source}; give the folder of a model")
    with safe_open(str(weights), framework="pt") as opened:
        state = {name: opened.get_tensor(name) for name in opened.keys()}
    target.mkdir(parents=True, exist_ok=True)
    written = target / "model.safetensors"
    unfinished = written.with_suffix(".part")
    save_file(
        pack_state(state, group_size, keep),
        str(unfinished),
        metadata={"format": PACKED_FORMAT, "group_size": str(group_size)},
    )
    os.replace(unfinished, written)
    copied = ["config.json", *(_TOKENIZER_FILES if tokenizer else ())]
    for name in copied:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    return written.stat().st_size


def read_packed(weights: Path) -> dict[str, torch.Tensor]:
    """Read a packed weights file into float32 weights.

    Parameters
    ----------
    weights : Path
        The safetensors file.

    Returns
    -------
    dict of str to Tensor
        Float32 weights by name.

    Raises
    ------
    ValueError
        If the file was not written by :func:`pack_model`.
    """
    with safe_open(str(weights), framework="pt") as opened:
        metadata = opened.metadata() or {}
        if metadata.get("format") != PACKED_FORMAT:
            raise ValueError(
                f"{weights} says format {json.dumps(metadata.get('format'))}; "
                f"only {PACKED_FORMAT!r} can be read"
            )
        packed = {name: opened.get_tensor(name) for name in opened.keys()}
    return unpack_state(packed)
