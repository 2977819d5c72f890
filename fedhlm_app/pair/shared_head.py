"""A carved SLM is taught behind its LLM's own head: less to learn, and most of the work gone.

The head of a carved SLM is the LLM's behind a linear map (:mod:`fedhlm_app.models.carving`). So the
SLM need not learn a head of a weight for each of some ten thousand tokens: it learns the map, the
head stands still, and so does the embedding. Losses are taken over the tokens that the texts have,
or the LLM expects, most often; the others move with the map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fedhlm_app.pair.sequences import Example

_TOKENS = 16_384
"""Of AG News in SmolLM2's tokens these are 97.6 %; with all 49,152 six layers took 1.8 times the
processor time (docs/negative-results.md)."""

_HEARD = 4096
"""Tokens of the texts behind which the LLM is asked what it expects. Texts alone do not tell: after
many a sentence of AG News SmolLM2 expects a line end, which no article has."""

_OFF = 0.01
"""Largest part of a head that may not be the LLM's behind a map: float16 rounds to .0005."""


@dataclass(frozen=True)
class SharedHead:
    """The LLM's head, of the tokens that losses are taken over.

    Attributes
    ----------
    weight : Tensor
        float32 [tokens, width], the LLM's rows.
    bias : Tensor or None
        float32 [tokens].
    place : Tensor
        int64 [vocabulary], which row a token has; -1 for those that have none.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    place: torch.Tensor

    def to(self, device: torch.device | str) -> SharedHead:
        """The same on a device."""
        bias = None if self.bias is None else self.bias.to(device)
        return SharedHead(self.weight.to(device), bias, self.place.to(device))

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Logits of its tokens.

        Parameters
        ----------
        states : Tensor
            [positions, width], what the LLM's head is given.

        Returns
        -------
        Tensor
            float32 [positions, tokens].
        """
        return nn.functional.linear(states, self.weight, self.bias).float()


def share_head(student: Any, teacher: Any, sequences: Sequence[Example]) -> SharedHead | None:
    """Give a carved SLM the map in place of its head, and hold its embedding still.

    Parameters
    ----------
    student, teacher : PreTrainedModel
        SLM, changed in place, and LLM.
    sequences : sequence of Example
        Texts to learn from.

    Returns
    -------
    SharedHead or None
        The LLM's head; None, and nothing is changed, where the SLM's head is not the LLM's behind
        a linear map, or one of them does more with a state than to multiply it by its head.
    """
    ours, theirs = student.get_output_embeddings(), teacher.get_output_embeddings()
    if ours is None or theirs is None or ours.weight.shape != theirs.weight.shape:
        return None
    if not (_is_linear(student) and _is_linear(teacher)):
        return None
    if (ours.bias is None) != (theirs.bias is None):
        return None
    if ours.bias is not None and not torch.allclose(ours.bias, theirs.bias, atol=1e-3):
        return None
    head = theirs.weight.data.double()
    gram = torch.linalg.pinv(head.T @ head, hermitian=True)
    solved = gram @ (head.T @ ours.weight.data.double())
    off = (head @ solved - ours.weight.data).norm() / ours.weight.data.norm()
    if not off < _OFF:
        return None
    width = head.shape[1]
    linear = nn.Linear(width, width, bias=False)
    linear.weight.data = solved.float()
    # Tied, the embedding would be the head that is taken away.
    _untie(student)
    student.set_output_embeddings(linear)
    student.get_input_embeddings().weight.requires_grad_(False)
    often = _often(teacher, sequences, len(head))
    tokens = torch.from_numpy(np.sort(np.argsort(-often, kind="stable")[:_TOKENS]))
    place = torch.full((len(head),), -1, dtype=torch.int64)
    place[tokens] = torch.arange(len(tokens))
    bias = None if theirs.bias is None else theirs.bias.data[tokens].clone()
    return SharedHead(theirs.weight.data[tokens].clone(), bias, place)


def _often(teacher: Any, sequences: Sequence[Example], vocabulary: int) -> np.ndarray:
    """How often a token is in the texts, and expected by the LLM: shares, float64 [vocabulary]."""
    counts = np.bincount(np.concatenate([one.tokens for one in sequences]), minlength=vocabulary)
    every = max(1, counts.sum() // _HEARD)
    expected = np.zeros(vocabulary)
    with torch.inference_mode():
        for one in sequences[:: int(every)]:
            tokens = torch.from_numpy(one.tokens.astype(np.int64))[None]
            logits = teacher(input_ids=tokens, use_cache=False).logits[0, one.first - 1 : -1]
            expected += logits.float().softmax(dim=-1).sum(dim=0).cpu().double().numpy()
    shares: np.ndarray = counts / counts.sum() + expected / expected.sum()
    return shares


def fold_head(student: Any, teacher: Any) -> None:
    """Make the LLM's head behind the map a head of the SLM's own, as others expect it."""
    linear, theirs = student.get_output_embeddings(), teacher.get_output_embeddings()
    folded = nn.Linear(linear.in_features, len(theirs.weight), bias=theirs.bias is not None)
    folded.weight.data = theirs.weight.data @ linear.weight.data
    if theirs.bias is not None:
        folded.bias.data = theirs.bias.data.clone()
    student.set_output_embeddings(folded)
    student.get_input_embeddings().weight.requires_grad_(True)


def _untie(model: Any) -> None:
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False


def _is_linear(model: Any) -> bool:
    """Tell whether logits are the last state times the head: some models cap or scale them."""
    tokens = torch.arange(4)[None]
    with torch.inference_mode():
        states = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        plain = model.get_output_embeddings()(states)
        logits = model(input_ids=tokens, use_cache=False).logits
    return torch.allclose(plain.float(), logits.float(), rtol=1e-3, atol=1e-3)
