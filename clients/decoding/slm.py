"""The small language model of a device, decoding all its prompts in lockstep.

Rows are padded on the left, so that the next token of every row comes out of the last column,
whatever the architecture. Rows that have ended are dropped from the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache, PreTrainedModel

IntArray = NDArray[np.int64]


@dataclass
class Step:
    """What the model says about the next token of every row.

    Attributes
    ----------
    logits : torch.Tensor
        float32 [rows, vocab].
    hidden : torch.Tensor or None
        float32 [rows, size], the last hidden state; None unless asked for.
    """

    logits: torch.Tensor
    hidden: torch.Tensor | None


class LockstepDecoder:
    """One batch of texts, one token each per step.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Any decoder-only model.
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
        self, model: PreTrainedModel, prompts: Sequence[IntArray], hidden: bool = False
    ) -> None:
        if not prompts or min(len(prompt) for prompt in prompts) == 0:
            raise ValueError("prompts: at least one prompt, each of at least one token, is needed")
        self.model = model
        self._hidden = hidden
        self._cache = DynamicCache(config=model.config)
        longest = max(len(prompt) for prompt in prompts)
        tokens = np.zeros((len(prompts), longest), np.int64)
        mask = np.zeros((len(prompts), longest), np.int64)
        for row, prompt in enumerate(prompts):
            tokens[row, longest - len(prompt) :] = prompt
            mask[row, longest - len(prompt) :] = 1
        device = model.device
        self._tokens = torch.from_numpy(tokens).to(device)
        self._mask = torch.from_numpy(mask).to(device)
        self._positions = (self._mask.cumsum(1) - 1).clamp(min=0)
        self._padded = bool((self._mask == 0).any())

    @torch.inference_mode()
    def start(self) -> Step:
        """Read the prompts; the distribution of each row's first new token."""
        return self._run(self._tokens, self._positions)

    @torch.inference_mode()
    def step(self, tokens: IntArray) -> Step:
        """Append one token to every row (int64 [rows]); the distribution of the next."""
        new = torch.from_numpy(np.ascontiguousarray(tokens)).to(self.model.device)[:, None]
        self._mask = torch.cat([self._mask, torch.ones_like(new)], dim=1)
        self._positions = self._positions[:, -1:] + 1
        return self._run(new, self._positions)

    def keep_rows(self, rows: IntArray) -> None:
        """Drop every row but these (int64, in order)."""
        index = torch.from_numpy(rows).to(self.model.device)
        # Recurrent layers know this name of it only.
        self._cache.reorder_cache(index)  # type: ignore[arg-type]
        self._mask = self._mask[index]
        self._positions = self._positions[index]

    def _run(self, tokens: torch.Tensor, positions: torch.Tensor) -> Step:
        output = self.model(
            input_ids=tokens,
            # Without padding the mask says nothing, and models take a faster path.
            attention_mask=self._mask if self._padded else None,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
            output_hidden_states=self._hidden,
        )
        hidden = output.hidden_states[-1][:, -1].float() if self._hidden else None
        return Step(output.logits[:, -1].float(), hidden)


@torch.inference_mode()
def read_texts(
    model: PreTrainedModel, texts: Sequence[IntArray], hidden: bool = False, max_tokens: int = 8192
) -> list[Step]:
    """The distribution of every token of given texts, context by context, in one pass per batch.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Any decoder-only model.
    texts : sequence of numpy.ndarray
        int64 [length_i], each at least two tokens.
    hidden : bool
        Also return last hidden states.
    max_tokens : int
        Most tokens, padding included, in one pass.

    Returns
    -------
    list of Step
        For each text, logits float32 [length_i - 1, vocab]: row ``t`` is the distribution of token
        ``t + 1``.
    """
    results: list[Step] = []
    longest = max(len(text) for text in texts)
    batch = max(1, max_tokens // longest)
    for begin in range(0, len(texts), batch):
        part = texts[begin : begin + batch]
        width = max(len(text) for text in part)
        # Padding on the right needs no mask: attention is causal.
        tokens = np.zeros((len(part), width), np.int64)
        for row, text in enumerate(part):
            tokens[row, : len(text)] = text
        output = model(
            input_ids=torch.from_numpy(tokens).to(model.device), output_hidden_states=hidden
        )
        for row, text in enumerate(part):
            kept = slice(0, len(text) - 1)
            states = output.hidden_states[-1][row, kept].float() if hidden else None
            results.append(Step(output.logits[row, kept].float(), states))
    return results
