"""What a pair is worth on held-out articles: each model alone, and how far they agree."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedhlm_app.data.items import Items
from fedhlm_app.models.sources import PairError
from fedhlm_app.pair.sequences import (
    Batch,
    batch_of,
    batches_by_length,
    chat_tokens,
    encode_items,
    label_answers,
)

_BATCH = 50


@dataclass(frozen=True)
class ModelFigures:
    """One model, teacher-forced.

    Attributes
    ----------
    parameters : int
        Weights, tied ones once.
    perplexity : float
        exp of the mean loss over every predicted token: text, topic, label and eos; of a chat its
        last answer.
    token_accuracy : float
        Share of those tokens that are the model's top-1, in [0, 1].
    label_accuracy : float or None
        Share of articles whose label has the largest logit among the labels, in [0, 1]; None
        where they have none.
    """

    parameters: int
    perplexity: float
    token_accuracy: float
    label_accuracy: float | None


@dataclass(frozen=True)
class PairFigures:
    """Both models on the same articles.

    Attributes
    ----------
    slm, llm : ModelFigures
        Each alone.
    same_top1 : float
        Share of tokens where both have the same top-1, in [0, 1].
    total_variation : float
        Mean total variation distance between their distributions at temperature 1, in [0, 1]. It is
        also the mean rejection probability of a sampled draft.
    same_label : float or None
        Share of articles with the same label from both, in [0, 1]; None where they have none.
    articles, tokens : int
        How many were measured.
    """

    slm: ModelFigures
    llm: ModelFigures
    same_top1: float
    total_variation: float
    same_label: float | None
    articles: int
    tokens: int


class _Sums:
    """Running sums of one model."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.log_loss = 0.0
        self.correct = 0
        self.labels_right = 0

    def figures(self, tokens: int, articles: int, labelled: bool) -> ModelFigures:
        parameters = {id(p): p.numel() for p in self.model.parameters()}
        return ModelFigures(
            parameters=sum(parameters.values()),
            perplexity=math.exp(self.log_loss / tokens),
            token_accuracy=self.correct / tokens,
            label_accuracy=self.labels_right / articles if labelled else None,
        )


def evaluate_pair(
    slm: PreTrainedModel,
    llm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Items,
    text_tokens: int = 92,
    rows: int = 0,
) -> PairFigures:
    """Measure a pair.

    Parameters
    ----------
    slm, llm : PreTrainedModel
        Models of one tokenizer.
    tokenizer : PreTrainedTokenizerBase
        That tokenizer.
    items : Items
        Held-out articles.
    text_tokens : int
        Most tokens of text in a sequence.
    rows : int
        First rows to measure on; 0 for all.

    Returns
    -------
    PairFigures
        Figures over all predicted tokens.

    Raises
    ------
    PairError
        If the models' vocabularies differ in size.
    """
    sizes = (slm.config.vocab_size, llm.config.vocab_size)
    if sizes[0] != sizes[1]:
        raise PairError(f"slm has {sizes[0]} token ids and llm {sizes[1]}; they must be equal")
    measured_on = items.subset(np.arange(min(rows, len(items)))) if rows else items
    sequences = encode_items(measured_on, tokenizer, text_tokens, chat_tokens(slm, llm))
    answers = torch.tensor(label_answers(items, tokenizer))
    labelled = len(answers) > 0
    after_label = 0 if tokenizer.eos_token_id is None else 1
    small, large = _Sums(slm), _Sums(llm)
    same_top1 = same_label = tokens = 0
    total_variation = 0.0
    for chosen in batches_by_length([len(sequence) for sequence in sequences], _BATCH):
        batch = batch_of([sequences[row] for row in chosen], 0, after_label)
        with torch.inference_mode():
            measured = [_measure(sums, batch, answers) for sums in (small, large)]
        tokens += len(measured[0].probs)
        same_top1 += int((measured[0].top == measured[1].top).sum())
        if labelled:
            same_label += int((measured[0].label == measured[1].label).sum())
        total_variation += float((measured[0].probs - measured[1].probs).abs().sum()) / 2.0
    return PairFigures(
        slm=small.figures(tokens, len(sequences), labelled),
        llm=large.figures(tokens, len(sequences), labelled),
        same_top1=same_top1 / tokens,
        total_variation=total_variation / tokens,
        same_label=same_label / len(sequences) if labelled else None,
        articles=len(sequences),
        tokens=tokens,
    )


@dataclass(frozen=True)
class _Measured:
    """A model on a batch: distributions [tokens, vocab], top-1 [tokens], labels [rows] or none."""

    probs: torch.Tensor
    top: torch.Tensor
    label: torch.Tensor


def _measure(sums: _Sums, batch: Batch, answers: torch.Tensor) -> _Measured:
    """Add a batch to a model's sums."""
    device = sums.model.device
    output = sums.model(
        input_ids=batch.tokens.to(device), attention_mask=batch.mask.to(device).long()
    )
    logits = output.logits.float().cpu()  # [rows, length, vocab]
    label = torch.empty(0, dtype=torch.int64)
    if len(answers):
        rows = torch.arange(len(batch.tokens))
        label = logits[rows, batch.label_positions - 1][:, answers].argmax(dim=1)
        truth = batch.tokens[rows, batch.label_positions]
        sums.labels_right += int((answers[label] == truth).sum())
    predicted = batch.predicted[:, 1:]
    log_probs = logits[:, :-1][predicted].log_softmax(dim=-1)  # [tokens, vocab]
    targets = batch.tokens[:, 1:][predicted]
    sums.log_loss -= float(log_probs.gather(1, targets[:, None]).double().sum())
    top = log_probs.argmax(dim=-1)
    sums.correct += int((top == targets).sum())
    return _Measured(log_probs.exp(), top, label)


def rounded(figures: PairFigures) -> dict[str, Any]:
    """Give the figures as plain values for JSON: perplexities to three decimals, others to four."""

    def short(values: dict[str, Any]) -> dict[str, Any]:
        return {
            name: short(value)
            if isinstance(value, dict)
            else value
            if value is None
            else round(value, 3 if name == "perplexity" else 4)
            for name, value in values.items()
        }

    return short(asdict(figures))
