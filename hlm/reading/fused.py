"""The forward pass of Llama and its kin in as few calls as it takes.

A small model's step is short: on a processor, most of it goes into calling modules one by one. The
layers of Llama, Mistral (without a window) and Qwen2 are the same few products and sums, so they
are written out here: one product for query, key and value, one for gate and up, one call for a
norm. The order of every sum is that of Transformers', and so are the results, bit for bit where
the products are.

Where new tokens go and what they attend to is the business of a `Memory`: lockstep rows on a device
(`clients`), sessions in slots at a server (`servers`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

MOST_BYTES = 1 << 30
"""Weights are held twice, so models of more bytes than this are read as they are."""

_KNOWN = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
_ROTATIONS = ("default", "linear", "llama3")  # those whose angles do not depend on a text's length

Linear = Callable[[Tensor], Tensor]
"""float32 [n, in] to float32 [n, out]."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder's attention.

    Attributes
    ----------
    layers, heads, key_heads, size : int
        Layers, heads of queries, heads of keys and values, and entries of each.
    """

    layers: int
    heads: int
    key_heads: int
    size: int


class Memory(Protocol):
    """Keys and values of the texts so far."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Take in the new tokens' keys and values; what each token's attention finds.

        Parameters
        ----------
        layer : int
            Number of the layer, from 0.
        query : torch.Tensor
            float32 [n, heads, size].
        key, value : torch.Tensor
            float32 [n, key heads, size].

        Returns
        -------
        torch.Tensor
            float32 [n, heads * size].
        """
        ...


@dataclass(frozen=True)
class _Layer:
    attention_norm: Tensor
    query_key_value: Linear
    attended: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear


class FusedDecoder:
    """A causal language model as one function of new tokens and a memory.

    Parameters
    ----------
    model : Any
        For which `can_fuse` holds. Later changes of its weights are not seen.
    linear : callable
        (weight [out, in], bias [out] or None) -> `Linear`.
    """

    def __init__(
        self, model: Any, linear: Callable[[Tensor, Tensor | None], Linear] | None = None
    ) -> None:
        make = plain_linear if linear is None else linear
        config, body = model.config, model.model
        heads = int(config.num_attention_heads)
        size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        self.shape = Shape(len(body.layers), heads, int(config.num_key_value_heads), size)
        self.vocab = int(config.vocab_size)
        self._eps = float(config.rms_norm_eps)
        self._embeddings = body.embed_tokens.weight.detach()
        self._norm = body.norm.weight.detach()
        self._head = make(*joined([model.lm_head]))
        self._rotary = body.rotary_emb
        self._tables = torch.empty(0), torch.empty(0)
        self._layers = []
        for layer in body.layers:
            attention, mlp = layer.self_attn, layer.mlp
            self._layers.append(
                _Layer(
                    layer.input_layernorm.weight.detach(),
                    make(*joined([attention.q_proj, attention.k_proj, attention.v_proj])),
                    make(*joined([attention.o_proj])),
                    layer.post_attention_layernorm.weight.detach(),
                    make(*joined([mlp.gate_proj, mlp.up_proj])),
                    make(*joined([mlp.down_proj])),
                )
            )

    def read(
        self, tokens: Tensor, positions: Tensor, longest: int, memory: Memory, wanted: Tensor
    ) -> Tensor:
        """Feed new tokens.

        Parameters
        ----------
        tokens, positions : torch.Tensor
            int64 [n], ids and places in their texts.
        longest : int
            Above every position.
        memory : Memory
            Of the texts.
        wanted : torch.Tensor
            int64 [m], which of the tokens are asked about.

        Returns
        -------
        torch.Tensor
            float32 [m, hidden size], the last hidden states of the wanted tokens; `logits` makes
            predictions of them.
        """
        shape, count = self.shape, len(tokens)
        rotated, half = shape.heads + shape.key_heads, shape.size // 2
        cos, sin = self._rotation(positions, longest)
        state = self._embeddings.index_select(0, tokens)
        width = (state.shape[1],)
        for number, layer in enumerate(self._layers):
            normed = functional.rms_norm(state, width, layer.attention_norm, self._eps)
            parts = layer.query_key_value(normed).view(count, -1, shape.size)
            turned = parts[:, :rotated]
            turned = turned * cos + turned.roll(half, -1) * sin
            found = memory.attend(
                number, turned[:, : shape.heads], turned[:, shape.heads :], parts[:, rotated:]
            )
            state = state + layer.attended(found)
            normed = functional.rms_norm(state, width, layer.mlp_norm, self._eps)
            gate, up = layer.gate_up(normed).chunk(2, 1)
            state = state + layer.down(functional.silu(gate) * up)
        return functional.rms_norm(state.index_select(0, wanted), width, self._norm, self._eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """Predictions float32 [m, vocab] of last hidden states float32 [m, hidden size]."""
        return self._head(hidden)

    def _rotation(self, positions: Tensor, longest: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines [n, 1, size] of the places; the sines' first half is negated."""
        cosines, sines = self._tables
        if longest > len(cosines):
            every = torch.arange(max(longest, 2 * len(cosines)))[None]
            cos, sin = (table[0] for table in self._rotary(self._embeddings, every))
            half = self.shape.size // 2
            # Rotation takes (a, b) to (-b, a): with the sign here, halves need only change places.
            cosines, sines = cos.contiguous(), torch.cat([-sin[:, :half], sin[:, half:]], dim=1)
            # Both at once: another thread may be reading with the same model.
            self._tables = cosines, sines
        cos, sin = cosines.index_select(0, positions), sines.index_select(0, positions)
        return cos.unsqueeze(1), sin.unsqueeze(1)


def can_fuse(model: Any) -> bool:
    """Whether a model is one of those that `FusedDecoder` writes out, on the CPU in float32."""
    config = model.config
    if type(model).__name__ not in _KNOWN or not type(model).__module__.startswith("transformers."):
        return False
    rotation = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    kinds = getattr(config, "layer_types", None) or []
    has_window = any(kind != "full_attention" for kind in kinds)
    has_window = has_window or (not kinds and getattr(config, "sliding_window", None) is not None)
    if has_window or config.hidden_act != "silu" or rotation not in _ROTATIONS:
        return False
    weights = list(model.parameters())
    return (
        not hasattr(model, "hf_device_map")
        and all(w.dtype == torch.float32 and w.device.type == "cpu" for w in weights)
        and sum(w.numel() * w.element_size() for w in weights) <= MOST_BYTES
        # Adapters and quantised layers compute something else, and hooks may.
        and all(type(part) in _parts(model) for part in model.modules())
        and not any(map(_has_foreign_hooks, model.modules()))
    )


def _has_foreign_hooks(part: nn.Module) -> bool:
    """Whether hooks but Transformers' own see a module; those only take down hidden states.

    They stay from the first pass that was asked for hidden states.
    """
    hooks = [*part._forward_hooks.values(), *part._forward_pre_hooks.values()]
    return any(not str(hook.__module__).startswith("transformers.") for hook in hooks)


def _parts(model: Any) -> set[type]:
    """Kinds of modules that the model has as Transformers makes it."""
    body, layer = model.model, model.model.layers[0]
    own = (model, body, layer, layer.self_attn, layer.mlp, layer.input_layernorm, body.rotary_emb)
    activation = type(layer.mlp.act_fn)
    return {*map(type, own), activation, nn.Linear, nn.Embedding, nn.ModuleList}


def joined(layers: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Weight [out, in] and bias [out] or None of one layer that does the work of several."""
    weight = torch.cat([layer.weight.detach() for layer in layers])
    if all(layer.bias is None for layer in layers):
        return weight, None
    return weight, torch.cat(
        [
            torch.zeros(layer.out_features) if layer.bias is None else layer.bias.detach()
            for layer in layers
        ]
    )


def plain_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """The product as PyTorch does it."""
    return lambda rows: functional.linear(rows, weight, bias)
