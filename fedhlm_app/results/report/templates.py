"""The report's HTML: Jinja2 templates that escape whatever is put into them.

They are text in a module, not files: a Flower bundle carries no `.html`, and a ServerApp must not
pair the bundle's figures with the page of another installed version.
"""

from __future__ import annotations

from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from fedhlm_app.results.report.style import CSS

_PARTS = """\
{% macro section(title, note, content) -%}
<section><h2>{{ title }}</h2><p class="dim">{{ note }}</p>{{ content }}</section>
{%- endmacro %}
{% macro table(rows) -%}
<table>{% for name, value in rows.items() %}
<tr><td>{{ name }}</td><td class="value">{{ value }}</td></tr>{% endfor %}</table>
{%- endmacro %}
"""

_HEAD = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ name }}</title><style>{% include "style" %}</style></head>
<body><h1>{{ name }}</h1>
"""

_ESTIMATE = """\
{% from "parts" import section, table -%}
{% include "head" %}
<p class="dim">{{ what }}</p>
<section><b>{{ verdict }}</b></section>
<section><table><tr>{% for heading in headings %}<th>{{ heading }}</th>{% endfor %}</tr>
{% for row in rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}
</table></section>
{{ section("Speed", "tokens/s by round trip in ms, with the risk that is taken", chart) }}
<section>{{ table(terms) }}</section>
</body></html>
"""

_PAGE = """\
{% from "parts" import section, table -%}
{% include "head" %}
<p class="dim">{{ what }}; started {{ started }}</p>
{% if error %}<section class="failed">The run failed: {{ error }}</section>{% endif %}
{% if finished %}
<p class="verdict">{{ verdict }}.</p>
<div class="cards">{% for figure, words in cards if figure %}
<div class="card"><b>{{ figure }}</b><span>{{ words }}</span></div>{% endfor %}</div>
{{ section("Who decided the tokens", "all rounds together", decided) }}
{% else %}
<section class="failed">This run has no summary: it is under way or has failed.</section>
{% endif %}
<div class="grid2">{% for title, note, chart in charts %}
{{ section(title, note, chart) }}{% endfor %}</div>
{% if clusters %}
{{ section("Clusters", "clients by their number", table(clusters)) }}
{% endif %}
<section><details open><summary>Settings (bold: not the default)</summary>
<table>{% for row in settings %}
<tr{% if row.changed %} class="changed"{% endif %}><td>{{ row.name }}</td>
<td class="value">{{ row.value }}</td><td class="dim">{{ row.meaning }}</td></tr>{% endfor %}
</table>
</details></section>
<section><details><summary>Machine and versions</summary>{{ table(facts) }}</details></section>
</body></html>
"""

_LEGEND = """\
<ul class="legend">{% for name in names %}
<li><i style="background:{{ colours[loop.index0] }}"></i>{{ name }}</li>{% endfor %}</ul>
"""

_CHART = """\
<svg viewBox="0 0 {{ width }} {{ height }}" role="img">
{% for y, words in across %}
<line x1="{{ left }}" x2="{{ right }}" y1="{{ px(y) }}" y2="{{ px(y) }}" class="grid"/>
<text x="{{ left - 6 }}" y="{{ px(y + 4) }}" text-anchor="end">{{ words }}</text>{% endfor %}
{% for x, words in rounds %}
<text x="{{ px(x) }}" y="{{ foot }}" text-anchor="middle">{{ words }}</text>{% endfor %}
<text x="{{ left - 6 }}" y="{{ foot }}" text-anchor="end">{{ axis }}</text>
{# The first line is the thick one, drawn last: on top of the others. #}
{% for line in lines | reverse %}
{% set stroke = colours[loop.revindex0] %}
<polyline points="{% for x, y, _ in line %}{{ px(x) }},{{ px(y) }} {% endfor %}" fill="none"
 stroke="{{ stroke }}" stroke-width="{{ 2.6 if loop.last else 1.4 }}" stroke-linejoin="round"/>
{% for x, y, words in line %}
<circle cx="{{ px(x) }}" cy="{{ px(y) }}" r="3" fill="{{ stroke }}" class="dot">
<title>{{ words }}</title></circle>{% endfor %}{% endfor %}
{% for x, top, width, floor, index, words in bars %}
<rect x="{{ px(x) }}" y="{{ px(top) }}" width="{{ px(width) }}"
 height="{{ px(floor - top) }}" fill="{{ colours[index] }}"><title>{{ words }}</title></rect>
{% endfor %}
</svg>{% include "legend" %}
"""

_NOTHING = '<p class="none">This run recorded nothing to draw here.</p>'

_SHARES = """\
<svg class="bar" role="img" height="26" width="100%">{% for start, width, words in parts %}
<rect x="{{ '%.3f' % start }}%" y="0" width="{{ '%.3f' % width }}%" height="26"
 fill="{{ colours[loop.index0] }}"><title>{{ words }}</title></rect>{% endfor %}
</svg>{% include "legend" %}
"""

_environment = Environment(
    loader=DictLoader(
        {
            "parts": _PARTS,
            "head": _HEAD,
            "page": _PAGE,
            "estimate": _ESTIMATE,
            "chart": _CHART,
            "shares": _SHARES,
            "nothing": _NOTHING,
            "legend": _LEGEND,
            "style": CSS,
        }
    ),
    autoescape=True,
    # A figure that is missing is an error, not a gap in the page.
    undefined=StrictUndefined,
    trim_blocks=True,
)


_environment.globals.update(px=lambda value: f"{value:.1f}")


def fill(template: str, **values: Any) -> Markup:
    """Return a template (page, estimate, chart, shares or nothing) with values put in, escaped."""
    return Markup(_environment.get_template(template).render(values))
