"""How well the small model foretold a text so far: what a learned router makes of the past.

A text that has surprised the small model goes on doing so, and its doubt of a draft means more
there. One row of three numbers a token, all known without the large model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from clients.decoding.slm import Step, read_texts

TRACED = ("surprise", "doubt", "agreed")
"""Per token: -ln x of the token the text got (nats), 1 - the largest x, 1{it is the top-1}."""


@torch.inference_mode()
def trace_of(logits: torch.Tensor, tokens: torch.Tensor) -> NDArray[np.float32]:
    """What the small model's logits [rows, vocab] say of int64 [rows] tokens, [rows, 3]."""
    log_probs = torch.log_softmax(logits.float(), dim=1)
    top = log_probs.max(dim=1)
    surprise = -log_probs.gather(1, tokens[:, None].to(log_probs.device))[:, 0].clamp_min(-20.0)
    agreed = (top.indices == tokens.to(log_probs.device)).float()
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
        steps = read_texts(model, [texts[row] for row in rows])
    else:
        steps = [steps[row] for row in rows]
    for row, one in zip(rows, steps, strict=True):
        text = texts[row]
        traces[row, 1 : len(text)] = trace_of(one.logits, torch.from_numpy(text[1:].copy()))
    return traces
