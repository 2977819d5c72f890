"""The small language model of a device, decoding all its prompts in lockstep.

Rows are padded on the left, so that the next token of every row comes out of the last column,
whatever the architecture. Rows that have ended are dropped from the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from clients.decoding.steps import Step, left_padded, shortened
from hlm.arrays import IntArray


class LockstepDecoder:
    """A batch of texts that grow, and with `shrinks` lose tokens again when drafts are rejected.

    Several rows may lose different numbers of tokens. What all of them lose is cut off the
    key-value cache; the rest is masked, which costs room until more can be cut. One row alone is
    always cut exactly, so going back and on is the same as never having gone ahead.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Any decoder-only model.
    prompts : sequence of numpy.ndarray
        int64 [length_i] token ids, each at least one token.
    hidden : bool
        Also return last hidden states.
    shrinks : bool
        `take_back` may be called.

    Attributes
    ----------
    lengths : numpy.ndarray
        int64 [rows], tokens read of each text.

    Raises
    ------
    ValueError
        When there is no prompt, or an empty one.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[IntArray],
        hidden: bool = False,
        shrinks: bool = False,
    ) -> None:
        self.model = model
        self._hidden = hidden
        # Made from the configuration, layers with a sliding window forget what a rollback needs.
        self._cache = DynamicCache() if shrinks else DynamicCache(config=model.config)
        tokens, mask, positions = (
            torch.from_numpy(part).to(model.device) for part in left_padded(prompts)
        )
        self._tokens, self._mask, self._positions = tokens, mask.long(), positions
        self._padded = not bool(mask.all())
        self.lengths = np.array([len(prompt) for prompt in prompts], np.int64)

    @torch.inference_mode()
    def start(self) -> Step:
        """Read the prompts; what comes after each of them."""
        return self._run(self._tokens, self._positions)

    def step(self, tokens: IntArray) -> Step:
        """Append one token to every row (int64 [rows]); what comes next."""
        return self.read(tokens[:, None], np.ones(len(tokens), np.int64))

    @torch.inference_mode()
    def read(self, tokens: IntArray, counts: IntArray) -> Step:
        """Append a few tokens to each row; what comes next.

        Parameters
        ----------
        tokens : numpy.ndarray
            int64 [rows, n], n >= 1; the last `counts` of each row.
        counts : numpy.ndarray
            int64 [rows], in 0 .. n; what comes after a row that appends nothing means nothing.
        """
        width = tokens.shape[1]
        new = torch.from_numpy(np.ascontiguousarray(tokens)).to(self.model.device)
        present = torch.ones_like(new)
        if (counts < width).any():
            missing = width - torch.from_numpy(counts).to(self.model.device)[:, None]
            present *= torch.arange(width, device=self.model.device) >= missing
            self._padded = True
        self._mask = torch.cat([self._mask, present], dim=1)
        self._positions = (self._positions[:, -1:] + present.cumsum(1)).clamp(min=0)
        self.lengths = self.lengths + counts
        return self._run(new, self._positions)

    def take_back(self, counts: IntArray) -> None:
        """Forget the last tokens of each row.

        Parameters
        ----------
        counts : numpy.ndarray
            int64 [rows], >= 0; at least one token of each text has to stay.

        Raises
        ------
        ValueError
            When a text would have no token left.
        """
        self.lengths = shortened(self.lengths, counts)
        back = torch.from_numpy(counts).to(self.model.device)[:, None]
        self._positions = self._positions[:, -1:] - back
        # Masked columns in between do not count: what goes is the last present ones.
        from_end = self._mask.flip(1).cumsum(1).flip(1)
        self._mask = self._mask * (from_end > back)
        used = np.flatnonzero(self._mask.any(dim=0).cpu().numpy())
        columns = int(used[-1]) + 1
        if columns < self._mask.shape[1]:
            self._cache.crop(columns - self._mask.shape[1])
            self._mask = self._mask[:, :columns]
        self._padded = bool((self._mask == 0).any())

    def keep_rows(self, rows: IntArray) -> None:
        """Drop every row but these (int64, in order)."""
        index = torch.from_numpy(rows).to(self.model.device)
        # Recurrent layers know this name of it only.
        self._cache.reorder_cache(index)  # type: ignore[arg-type]
        self._mask = self._mask[index]
        self._positions = self._positions[index]
        self.lengths = self.lengths[rows]

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
