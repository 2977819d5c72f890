"""The model card that a training writes beside its models."""

from __future__ import annotations

from fedhlm_app.pair.figures import PairFigures
from fedhlm_app.pair.recipe import PairTraining

__all__ = ["model_card"]


def model_card(
    settings: PairTraining, figures: PairFigures, stages: dict[str, dict[str, float]]
) -> str:
    """Write the card of a pair in Markdown.

    Parameters
    ----------
    settings : PairTraining
        How it was trained.
    figures : PairFigures
        What it is worth on held-out articles.
    stages : dict
        Steps, tokens and seconds of each optimised stage.

    Returns
    -------
    str
        Markdown.
    """
    rows = [
        f"| perplexity | {figures.slm.perplexity:.1f} | {figures.llm.perplexity:.1f} |",
        f"| next-token accuracy | {figures.slm.token_accuracy:.3f} "
        f"| {figures.llm.token_accuracy:.3f} |",
        f"| label accuracy | {figures.slm.label_accuracy:.3f} | {figures.llm.label_accuracy:.3f} |",
    ]
    trained = [
        f"| {name} | {int(stage['steps'])} | {stage['tokens'] / 1e6:.2f} M "
        f"| {stage['seconds'] / 60:.1f} | {getattr(settings, name).peak_rate:g} "
        f"| {getattr(settings, name).distillation:g} |"
        for name, stage in stages.items()
    ]
    shapes = [
        f"| hidden, layers, heads, intermediate "
        f"| {_shape(settings, 'slm')} | {_shape(settings, 'llm')} |",
        f"| parameters (tied embeddings) | {figures.slm.parameters:,} "
        f"| {figures.llm.parameters:,} |",
    ]
    return "\n".join(
        [
            "# Model pair",
            "",
            "A small and a large Llama-architecture causal language model with one byte-level "
            "BPE tokenizer.",
            f"A sequence is bos, at most {settings.text_tokens} tokens of text, topic, label, eos.",
            "",
            "| | slm | llm |",
            "|---|---|---|",
            *shapes,
            *rows,
            "",
            f"Measured on {figures.articles:,} held-out articles ({figures.tokens:,} predicted "
            "tokens). Between the two: same top-1 token "
            f"{figures.same_top1:.3f}, mean total variation {figures.total_variation:.3f}, same "
            f"label {figures.same_label:.3f}.",
            "",
            "## Training",
            "",
            f"Dataset `{settings.dataset}`, seed {settings.seed}. AdamW (.9, .95), weight decay "
            ".1 on matrices, gradient clip 1, batches of like length, warm-up, constant rate, "
            "then linear decay.",
            "",
            "| stage | steps | tokens | minutes | peak rate | weight of KL to the LLM |",
            "|---|---|---|---|---|---|",
            *trained,
            "",
        ]
    )


def _shape(settings: PairTraining, role: str) -> str:
    """Give a model's sizes in one cell."""
    shape = getattr(settings, f"{role}_shape")
    return f"{shape.hidden}, {shape.layers}, {shape.heads}, {shape.intermediate}"
