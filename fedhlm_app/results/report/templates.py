"""The pages' HTML: Jinja2 templates that escape whatever is put into them.

They are text in modules, not files: a Flower bundle carries no `.html`, and a ServerApp must not
pair the bundle's figures with the page of another installed version.
"""

from __future__ import annotations

from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from fedhlm_app.results.report.script import SCRIPT
from fedhlm_app.results.report.style import CSS
from fedhlm_app.results.report.svg import CHART, LEGEND, NOTHING, SHARES

_PARTS = """\
{% macro section(title, note, content) -%}
<section><h2>{{ title }}</h2>{% if note %}<p class="dim">{{ note }}</p>{% endif %}
{{ content }}</section>
{%- endmacro %}
{% macro scrolled(label) -%}
<div class="scroll" role="region" tabindex="0" aria-label="{{ label }}">{{ caller() }}</div>
{%- endmacro %}
{% macro table(rows) -%}
<table>{% for name, value in rows.items() %}
<tr><th scope="row">{{ name }}</th><td class="value">{{ value }}</td></tr>{% endfor %}</table>
{%- endmacro %}
{% macro settings_table(rows) -%}
<table>{% for row in rows %}
<tr{% if row.changed %} class="changed"{% endif %}><th scope="row">{{ row.name }}</th>
<td class="value">{{ row.value }}</td><td class="dim">{{ row.meaning }}</td></tr>{% endfor %}
</table>
{%- endmacro %}
{% macro sorted_table(label, headings, rows) -%}
<div class="sorts"><div class="tools" hidden><label>Filter {{ label | lower }}
<input type="search" size="12"></label> <span role="status"></span></div>
{% call scrolled(label) %}
<table><thead><tr>{% for heading, kind in headings %}
<th scope="col" class="{{ kind }}"><button type="button">{{ heading }}</button></th>{% endfor %}
</tr></thead><tbody>{% for row in rows %}
<tr>{% for value, words in row %}
{% if loop.first %}<th scope="row" data-value="{{ value }}">{{ words }}</th>
{% else %}<td class="{{ headings[loop.index0][1] }}" data-value="{{ value }}">{{ words }}</td>
{% endif %}{% endfor %}</tr>{% endfor %}
</tbody></table>{% endcall %}</div>
{%- endmacro %}
"""

_HEAD = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ name }}</title><style>{% include "style" %}</style></head>
<body><header><h1>{{ name }}</h1><p class="dim">{{ what }}</p></header><main>
"""

_FOOT = """\
</main><script>{% include "script" %}</script></body></html>
"""

_ESTIMATE = """\
{% from "parts" import section, table, scrolled -%}
{% include "head" %}
<section><b>{{ verdict }}</b></section>
<section><h2>Ways of decoding</h2><p class="dim">{{ meaning }}</p>
{% call scrolled("Ways of decoding") %}
<table class="values"><thead><tr>{% for heading in headings %}
<{{ "th" if heading else "td" }}{% if heading %} scope="col"{% endif %}>{{ heading }}
</{{ "th" if heading else "td" }}>{% endfor %}</tr></thead>
{% for row in rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}
</table>{% endcall %}</section>
{{ section("Speed", "tokens/s by round trip in ms, with the risk that is taken", chart) }}
<section><h2>Terms</h2>{{ table(terms) }}</section>
</main></body></html>
"""

_PAGE = """\
{% from "parts" import section, table, settings_table, sorted_table -%}
{% include "head" %}
{% if error %}<section class="failed"><h2>The run failed</h2><p>{{ error }}</p>
{% elif not finished %}
<section class="failed"><h2>Not finished</h2>
<p>This run has no summary: it is under way or was stopped.</p>
{% endif %}
{% if error or not finished %}
<p>{{ resume[0] }}{% if resume[1] %}: <code>{{ resume[1] }}</code>{% endif %}</p>
</section>{% endif %}
{% if finished %}
<p class="verdict">{{ verdict }}.</p>
<div class="cards">{% for figure, words in cards if figure %}
<div class="card"><b>{{ figure }}</b><span>{{ words }}</span></div>{% endfor %}</div>
{{ section("Who decided the tokens", "all rounds together", decided) }}
{% endif %}
<div class="grid2">{% for title, note, chart in charts %}
{{ section(title, note, chart) }}{% endfor %}
{% if by_cluster %}
{{ section("Who decided, by cluster", "a client counts where it was last", by_cluster) }}
{% endif %}</div>
{% if clusters %}
{{ section("Clusters", "learned; clients by their number", table(clusters)) }}
{% endif %}
{% if clients %}
{{ section("Clients", clients_note, sorted_table("Clients", client_headings, clients)) }}
{% endif %}
{% if examples %}<section><h2>Examples</h2>
<p class="dim">Texts of round {{ examples[0].round }}, kept because token-texts = true. What has
no colour is the prompt; a token's colour says who decided it, and the pointer shows its
uncertainty.</p>
<input type="checkbox" id="told"> <label for="told">Write every token's uncertainty</label>
{{ examples_legend }}
{% for text in examples %}
<div class="example"><span class="dim">client {{ text.client }}, item {{ text.prompt }}: </span>
{{- text.before }}
{%- for token in text.tokens %}<span class="token" style="--stage:{{ token.colour }}"
 title="{{ token.title }}" data-told="{{ token.told }}">{{ token.text }}</span>{% endfor %}</div>
{% endfor %}</section>
{% elif logged %}
{{ section("Tokens", "", logged) }}
{% endif %}
<section><h2>Settings</h2>
{% if changed %}{{ settings_table(changed) }}{% else %}
<p class="dim">All at their defaults.</p>{% endif %}
<details><summary>The other {{ others | length }}, at their defaults</summary>
{{ settings_table(others) }}</details></section>
<section><details><summary>Machine and versions</summary>{{ table(facts) }}</details></section>
{% include "foot" %}
"""

_SIDE_BY_SIDE = """\
{% from "parts" import section, sorted_table -%}
{% include "head" %}
{{ section("Runs", "", sorted_table("Runs", headings, rows)) }}
{% if decided %}{{ section("Who decided the tokens", "all rounds together", decided) }}{% endif %}
<div class="grid2">{% for title, note, chart in charts %}
{{ section(title, note, chart) }}{% endfor %}</div>
<section><h2>Verdicts</h2>{% for run, words in verdicts.items() %}
<p><b>{{ run }}</b>: {{ words }}</p>{% endfor %}</section>
{% include "foot" %}
"""

_environment = Environment(
    loader=DictLoader(
        {
            "parts": _PARTS,
            "head": _HEAD,
            "foot": _FOOT,
            "page": _PAGE,
            "side-by-side": _SIDE_BY_SIDE,
            "estimate": _ESTIMATE,
            "chart": CHART,
            "shares": SHARES,
            "nothing": NOTHING,
            "legend": LEGEND,
            "style": CSS,
            "script": SCRIPT,
        }
    ),
    autoescape=True,
    # A figure that is missing is an error, not a gap in the page.
    undefined=StrictUndefined,
    trim_blocks=True,
)


_environment.globals.update(px=lambda value: f"{value:.1f}")


def fill(template: str, **values: Any) -> Markup:
    """Return a template with values put in, escaped.

    Parameters
    ----------
    template : str
        page, side-by-side, estimate, chart, shares, legend or nothing.
    **values
        What it asks for; one that is missing raises `jinja2.UndefinedError`.
    """
    return Markup(_environment.get_template(template).render(values))
