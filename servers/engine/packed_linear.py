"""Linear layers for the short batches of decoding, on a processor.

A step of decoding multiplies each weight matrix by a handful of rows, which takes as long as
reading the matrix. oneDNN reads one that was laid out for it beforehand about twice as fast as
the default reads it row by row. On the processors it was tried on a row's product has
the same bits whatever rows come with it, which oneDNN does not promise; attention's has not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

MOST_BYTES = 1 << 30
"""Weights are held twice, so models of more bytes than this are read as they are."""

_ROWS_HINT = 16
"""Rows the layout is chosen for; what is chosen from 8 to 64 is the same, and the best for 1."""


class PackedLinear(nn.Module):
    """A linear layer that reads a packed copy of another one's weight.

    Parameters
    ----------
    linear : torch.nn.Linear
        float32 on the CPU. Later changes of its weight are not seen.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        # The plain weight stays for whoever asks for its dtype, shape or device.
        self.weight = linear.weight
        self.bias = linear.bias
        self._product = packed_product(linear.weight.detach(), linear.bias)

    def forward(self, rows: Tensor) -> Tensor:
        """``rows @ weight.T + bias``: float32 [..., in_features] to [..., out_features]."""
        return self._product(rows)


def packed_product(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """The product with a weight float32 [out, in] on the CPU, read from a packed copy of it.

    Returns
    -------
    callable
        float32 [..., in] to [..., out].
    """
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT)
    # The overload itself: looking it up costs as much as a small product.
    product = torch.ops.mkldnn._linear_pointwise.default

    def linear(rows: Tensor) -> Tensor:
        result: Tensor = product(rows, packed, bias, "none", [], "")
        return result

    return linear


def can_pack(model: PreTrainedModel) -> bool:
    """Whether a model's linear layers can be packed: float32, all on the CPU, not too large."""
    weights = list(model.parameters())
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and not hasattr(model, "hf_device_map")
        and all(w.dtype == torch.float32 and w.device.type == "cpu" for w in weights)
        and sum(w.numel() * w.element_size() for w in weights) <= MOST_BYTES
    )


def packed_twin(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same weights whose linear layers are packed; the given one where it can't be.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Not changed. The twin shares every tensor with it but has modules and a configuration of
        its own.
    """
    if not can_pack(model):
        return model
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    for module in list(twin.modules()):
        for name, child in module.named_children():
            # A subclass may compute something else.
            if type(child) is nn.Linear:
                setattr(module, name, PackedLinear(child))
    return twin
