"""How well the small model foretold a text so far: what a learned router makes of the past.

A text that has surprised the small model goes on doing so, and its doubt of a draft means more
there. One row of three numbers a token, all known without the large model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clients.decoding.steps import Step
from hlm.arrays import Array, IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TRACED = ("surprise", "doubt", "agreed")
"""Per token: -ln x of the token the text got (nats), 1 - the largest x, 1{it is the top-1}."""


def trace_of(logits: Array, tokens: IntArray) -> NDArray[np.float32]:
    """What the small model's logits [rows, vocab] say of int64 [rows] tokens, [rows, 3]."""
    import torch

    with torch.inference_mode():
        log_probs = torch.log_softmax(logits.float(), dim=1)
        got = torch.as_tensor(tokens).to(log_probs.device)
        top = log_probs.max(dim=1)
        surprise = -log_probs.gather(1, got[:, None])[:, 0].clamp_min(-20.0)
        agreed = (top.indices == got).float()
        return torch.stack([surprise, 1 - top.values.exp(), agreed], dim=1).cpu().numpy()


def text_traces(
    model: PreTrainedModel,
    texts: Sequence[NDArray[np.int64]],
    room: int,
    steps: Sequence[Step] | None = None,
) -> NDArray[np.float32]:
    """Traces of given texts, float32 [texts, room, 3]; NaN where there is none.

    Parameters
    ----------
    model : PreTrainedModel
        The small model.
    texts : sequence of numpy.ndarray
        int64 [length_i], 1 <= length_i <= room. A text's first token was not foretold.
    room : int
        Places of the result.
    steps : sequence of Step, optional
        What `read_texts` gave for these texts, if that has been done.
    """
    traces = np.full((len(texts), room, len(TRACED)), np.nan, np.float32)
    rows = [row for row, text in enumerate(texts) if len(text) > 1]
    if not rows:
        return traces
    if steps is None:
        from clients.decoding.slm import read_texts

        steps = read_texts(model, [texts[row] for row in rows])
    else:
        steps = [steps[row] for row in rows]
    for row, one in zip(rows, steps, strict=True):
        text = texts[row]
        traces[row, 1 : len(text)] = trace_of(one.logits, text[1:].copy())
    return traces
