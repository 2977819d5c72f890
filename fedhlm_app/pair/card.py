"""The model card that a training writes beside its models."""

from __future__ import annotations

from jinja2 import Environment
from transformers import PreTrainedConfig

from fedhlm_app.pair.figures import PairFigures
from fedhlm_app.pair.recipe import PairTraining

_CARD = Environment(trim_blocks=True, keep_trailing_newline=True, autoescape=False).from_string(
    """\
# Model pair

A small and a large causal language model with one tokenizer of {{ "{:,}".format(tokens) }} tokens.
{% if chat %}
A sequence is a chat in its template; the last answer is predicted.
{% else %}
A sequence is bos, at most {{ s.text_tokens }} tokens of text\
{% if f.same_label is not none %}, topic, label{% endif %}, eos.
{% endif %}

{% macro shape(one) -%}
{{ one.hidden_size }}, {{ one.num_hidden_layers }}, {{ one.num_attention_heads }}, \
{{ one.intermediate_size }}
{%- endmacro %}
| | slm | llm |
|---|---|---|
| architecture | {{ slm.model_type }} | {{ llm.model_type }} |
| hidden, layers, heads, intermediate | {{ shape(slm) }} | {{ shape(llm) }} |
| parameters (tied ones once) | {{ "{:,}".format(f.slm.parameters) }} \
| {{ "{:,}".format(f.llm.parameters) }} |
| perplexity | {{ "%.1f" % f.slm.perplexity }} | {{ "%.1f" % f.llm.perplexity }} |
| next-token accuracy | {{ "%.3f" % f.slm.token_accuracy }} \
| {{ "%.3f" % f.llm.token_accuracy }} |
{% if f.same_label is not none %}
| label accuracy | {{ "%.3f" % f.slm.label_accuracy }} | {{ "%.3f" % f.llm.label_accuracy }} |
{% endif %}

Measured on {{ "{:,}".format(f.articles) }} held-out {{ 'chats' if chat else 'texts' }} \
({{ "{:,}".format(f.tokens) }} predicted tokens). Between the two: same top-1 token \
{{ "%.3f" % f.same_top1 }}, mean total variation {{ "%.3f" % f.total_variation }}\
{% if f.same_label is not none %}, same label {{ "%.3f" % f.same_label }}{% endif %}.

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
    settings: PairTraining,
    figures: PairFigures,
    stages: dict[str, dict[str, float]],
    configs: tuple[PreTrainedConfig, PreTrainedConfig],
    tokens: int,
    *,
    chat: bool = False,
) -> str:
    """Write the card of a pair in Markdown.

    Parameters
    ----------
    settings : PairTraining
        How it was trained.
    figures : PairFigures
        What it is worth on held-out items.
    stages : dict
        Steps, tokens and seconds of each optimised stage.
    configs : tuple of PreTrainedConfig
        Of SLM and LLM; where one does not know a size, it is left out.
    tokens : int
        Of their tokenizer.
    chat : bool
        The items are chats.

    Returns
    -------
    str
        Markdown.
    """
    slm, llm = (config.get_text_config() for config in configs)
    return _CARD.render(
        s=settings, f=figures, stages=stages, slm=slm, llm=llm, tokens=tokens, chat=chat
    )
