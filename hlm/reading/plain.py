"""Reading texts with a causal language model in the plainest ways: slow, and right for any model.

Batches with key-value memory of our own (`servers`, `clients`) suit most models and are wrong for
some: those with recurrent layers, with position biases of their own, with a memory that is no list
of keys and values. These two ways lean on nothing but a causal forward pass, or on the model's own
cache, one text at a time.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from hlm.arrays import IntArray

_LEAST_HELD = 8
"""A cache begun with fewer tokens is begun anew: convolutions reach back beyond it, and some
models then continue wrongly."""


@dataclass(frozen=True)
class Passage:
    """A text with tokens that are new, and where its next-token logits are wanted.

    Attributes
    ----------
    key : int
        Whose text it is: what was read of it before is found under this number.
    text : numpy.ndarray
        int64 [n], the whole text, n >= 1.
    first : int
        Tokens before it were read before and are unchanged, 0 <= first < n.
    wanted : numpy.ndarray
        int64 [m] increasing positions in ``first + 1 .. n``: the logits of token ``p`` given
        tokens ``0 .. p - 1``.
    """

    key: int
    text: IntArray
    first: int
    wanted: IntArray

    @property
    def new(self) -> IntArray:
        """The tokens from `first` on."""
        return self.text[self.first :]


@dataclass(frozen=True)
class Predictions:
    """What a model says at the wanted positions of a text.

    Attributes
    ----------
    logits : torch.Tensor
        float32 [m, vocab].
    hidden : torch.Tensor or None
        float32 [m, size], last hidden states; None unless asked for.
    """

    logits: torch.Tensor
    hidden: torch.Tensor | None


class PlainReading(Protocol):
    """A way to read texts; see `FullForward` and `OwnCaches`."""

    def read(self, passages: Sequence[Passage]) -> list[Predictions]:
        """Predictions for each passage, in order."""
        ...


class FullForward:
    """Reads every text from its start, padded on the right, and remembers nothing.

    Parameters
    ----------
    model : Any
        A causal model of Transformers: called with ``input_ids`` int64 [rows, n], gives
        ``logits`` [rows, n, vocab].
    hidden : bool
        Also return last hidden states.
    max_logits : int
        Most logits in one pass of several texts, which has at most 8192 tokens, padding included.
        One text alone is always read in one pass.
    """

    def __init__(self, model: Any, hidden: bool = False, *, max_logits: int = 2**26) -> None:
        self.model = model
        self.hidden = hidden
        self.max_tokens = min(8192, max_logits // model.config.get_text_config().vocab_size)
        self._options = forward_options(model, hidden) | _if_known(model, use_cache=False)
        self._can_keep = "logits_to_keep" in forward_parameters(model)

    @torch.inference_mode()
    def read(self, passages: Sequence[Passage]) -> list[Predictions]:
        """Predictions for each passage, in order."""
        found: dict[int, Predictions] = {}
        order = sorted(range(len(passages)), key=lambda i: -len(passages[i].text))
        while order:
            width = len(passages[order[0]].text)
            count = max(1, self.max_tokens // width)
            chosen, order = order[:count], order[count:]
            read = self._read_together([passages[i] for i in chosen], width)
            found.update(zip(chosen, read, strict=True))
        return [found[index] for index in range(len(passages))]

    def _read_together(self, passages: Sequence[Passage], width: int) -> list[Predictions]:
        # Padding on the right needs no mask: a causal model never sees it.
        tokens = np.zeros((len(passages), width), np.int64)
        for line, passage in zip(tokens, passages, strict=True):
            line[: len(passage.text)] = passage.text
        device = self.model.device
        kept = np.unique(np.concatenate([passage.wanted for passage in passages])) - 1
        options = dict(self._options)
        if self._can_keep:
            options["logits_to_keep"] = torch.from_numpy(kept).to(device)
        output = self.model(input_ids=torch.from_numpy(tokens).to(device), **options)
        found = []
        for row, passage in enumerate(passages):
            places = torch.from_numpy(passage.wanted - 1).to(device)
            columns = places
            if self._can_keep:
                columns = torch.from_numpy(np.searchsorted(kept, passage.wanted - 1)).to(device)
            hidden = output.hidden_states[-1][row, places].float() if self.hidden else None
            found.append(Predictions(output.logits[row, columns].float(), hidden))
        return found


class OwnCaches:
    """Reads one text at a time, each with a cache of the model's own kind.

    Where the cache can take tokens back exactly, a rollback crops it; else the text is read anew.

    Parameters
    ----------
    model : Any
        As for `FullForward`; takes the cache as ``past_key_values`` or ``cache_params``.
    new_cache : callable
        Makes an empty cache, with Transformers' ``crop``, ``is_croppable`` and ``is_sliding``.
    hidden : bool
        Also return last hidden states.
    is_singly : bool
        What follows a text's first tokens is fed token by token, as recurrent layers may need it.

    Raises
    ------
    TypeError
        When the model's forward pass takes no cache.
    """

    def __init__(
        self,
        model: Any,
        new_cache: Callable[[], Any],
        hidden: bool = False,
        is_singly: bool = False,
    ) -> None:
        known = forward_parameters(model)
        names = [name for name in ("past_key_values", "cache_params") if name in known]
        if not names:
            raise TypeError(f"{type(model).__name__} takes no cache")
        self.model = model
        self.hidden = hidden
        self.is_singly = is_singly
        self._name = names[0]
        self._new_cache = new_cache
        self._options = forward_options(model, hidden) | _if_known(model, use_cache=True)
        self._can_keep = "logits_to_keep" in known
        self._held: dict[int, tuple[Any, int]] = {}

    @torch.inference_mode()
    def read(self, passages: Sequence[Passage]) -> list[Predictions]:
        """Predictions for each passage, in order."""
        return [self._read(passage) for passage in passages]

    def _read(self, passage: Passage) -> Predictions:
        cache, first = self._rolled_back(passage)
        end = len(passage.text)
        size = 1 if self.is_singly and first > 0 else end - first
        parts = []
        for begin in range(first, end, size):
            read = slice(begin, begin + size)
            places = passage.wanted[(passage.wanted > read.start) & (passage.wanted <= read.stop)]
            parts.append(self._continue(cache, passage.text[read], places - 1 - begin))
        self._held[passage.key] = cache, end
        hidden = [part.hidden for part in parts if part.hidden is not None]
        return Predictions(
            torch.cat([part.logits for part in parts]), torch.cat(hidden) if hidden else None
        )

    def _continue(self, cache: Any, tokens: IntArray, wanted: IntArray) -> Predictions:
        """Feed the tokens after those in the cache; predictions at their places `wanted`."""
        device = self.model.device
        places = torch.from_numpy(wanted).to(device)
        options = {**self._options, self._name: cache}
        if self._can_keep:
            options["logits_to_keep"] = places
        output = self.model(input_ids=torch.from_numpy(tokens)[None].to(device), **options)
        logits = output.logits[0] if self._can_keep else output.logits[0, places]
        hidden = output.hidden_states[-1][0, places].float() if self.hidden else None
        return Predictions(logits.float(), hidden)

    def _rolled_back(self, passage: Passage) -> tuple[Any, int]:
        """A cache that holds the start of the text, and how much of it."""
        # Taken out: if the pass fails half-way, what it leaves behind is of no use.
        cache, length = self._held.pop(passage.key, (None, 0))
        if cache is None or length < passage.first or passage.first < _LEAST_HELD:
            return self._new_cache(), 0
        if length > passage.first:
            if not cache.is_croppable or any(cache.is_sliding):
                return self._new_cache(), 0
            try:
                cache.crop(passage.first - length)
            except RuntimeError:  # a convolution's cache has not kept what came before
                return self._new_cache(), 0
        return cache, passage.first


def forward_parameters(model: Any) -> set[str]:
    """Names that a model's forward pass declares; others it may swallow without a word."""
    return set(inspect.signature(model.forward).parameters)


def forward_options(model: Any, hidden: bool) -> dict[str, Any]:
    """What every forward pass is called with."""
    return {"output_hidden_states": True} if hidden else {}


def _if_known(model: Any, **options: Any) -> dict[str, Any]:
    known = forward_parameters(model)
    return {name: value for name, value in options.items() if name in known}
