"""The model card that a training writes beside its models."""

from __future__ import annotations

from jinja2 import Environment

from fedhlm_app.pair.figures import PairFigures
from fedhlm_app.pair.recipe import PairTraining

_CARD = Environment(trim_blocks=True, keep_trailing_newline=True, autoescape=False).from_string(
    """\
# Model pair

A small and a large Llama-architecture causal language model with one byte-level BPE tokenizer.
A sequence is bos, at most {{ s.text_tokens }} tokens of text, topic, label, eos.

{% macro shape(one) -%}
{{ one.hidden }}, {{ one.layers }}, {{ one.heads }}, {{ one.intermediate }}
{%- endmacro %}
| | slm | llm |
|---|---|---|
| hidden, layers, heads, intermediate | {{ shape(s.slm_shape) }} | {{ shape(s.llm_shape) }} |
| parameters (tied embeddings) | {{ "{:,}".format(f.slm.parameters) }} \
| {{ "{:,}".format(f.llm.parameters) }} |
| perplexity | {{ "%.1f" % f.slm.perplexity }} | {{ "%.1f" % f.llm.perplexity }} |
| next-token accuracy | {{ "%.3f" % f.slm.token_accuracy }} \
| {{ "%.3f" % f.llm.token_accuracy }} |
| label accuracy | {{ "%.3f" % f.slm.label_accuracy }} | {{ "%.3f" % f.llm.label_accuracy }} |

Measured on {{ "{:,}".format(f.articles) }} held-out articles \
({{ "{:,}".format(f.tokens) }} predicted tokens). Between the two: same top-1 token \
{{ "%.3f" % f.same_top1 }}, mean total variation {{ "%.3f" % f.total_variation }}, same label \
{{ "%.3f" % f.same_label }}.

## Training

Dataset `{{ s.dataset }}`, seed {{ s.seed }}. AdamW (.9, .95), weight decay .1 on matrices, \
gradient clip 1, batches of like length, warm-up, constant rate, then linear decay.

| stage | steps | tokens | minutes | peak rate | weight of KL to the LLM |
|---|---|---|---|---|---|
{% for name, stage in stages.items() %}
| {{ name }} | {{ stage.steps | int }} | {{ "%.2f" % (stage.tokens / 1e6) }} M \
| {{ "%.1f" % (stage.seconds / 60) }} | {{ "%g" % s[name].peak_rate }} \
| {{ "%g" % s[name].distillation }} |
{% endfor %}
"""
)


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
    return _CARD.render(s=settings, f=figures, stages=stages)
