"""Templates of the drawings: inline SVG, each with a name, a legend and its values as a table."""

LEGEND = """\
<ul class="legend">{% for name in names %}
<li><i style="background:{{ colours[loop.index0] }}"></i>{{ name }}</li>{% endfor %}
{% if level %}<li><i class="level"></i>{{ level[1] }}</li>{% endif %}
{% if bands %}<li><i class="band"></i>{{ band_words }}</li>{% endif %}</ul>
"""

CHART = """\
{% from "parts" import scrolled -%}
<svg viewBox="0 0 {{ width }} {{ height }}" role="img" aria-label="{{ title }}">
{% for x, band_width in bands %}
<rect x="{{ px(x) }}" y="{{ top }}" width="{{ px(band_width) }}" height="{{ px(floor - top) }}"
 class="band"><title>{{ band_words }}</title></rect>{% endfor %}
{% for y, words in across %}
<line x1="{{ left }}" x2="{{ right }}" y1="{{ px(y) }}" y2="{{ px(y) }}" class="grid"/>
<text x="{{ left - 6 }}" y="{{ px(y + 4) }}" text-anchor="end">{{ words }}</text>{% endfor %}
{% for x, words in rounds %}
<text x="{{ px(x) }}" y="{{ foot }}" text-anchor="middle">{{ words }}</text>{% endfor %}
{% if axis | length < 9 %}
<text x="{{ left - 14 }}" y="{{ foot }}" text-anchor="end">{{ axis }}</text>{% endif %}
{% if level %}
<line x1="{{ left }}" x2="{{ right }}" y1="{{ px(level[0]) }}" y2="{{ px(level[0]) }}"
 class="level"/>
{% endif %}
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
<details class="values"><summary>{{ title.split(":")[0] }} as a table</summary>
{% call scrolled(title) %}
<table><thead><tr><th scope="col">{{ axis }}</th>{% for name in names %}
<th scope="col">{{ name }}</th>{% endfor %}</tr></thead><tbody>{% for first, cells in values %}
<tr><th scope="row">{{ first }}</th>{% for cell in cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table>{% endcall %}</details>
"""

NOTHING = '<p class="none">This run recorded nothing to draw here.</p>'

SHARES = """\
{% for label, described, parts in bars %}
<div class="shares">{% if label %}<span>{{ label }}</span>{% endif %}
<svg class="bar" role="img" aria-label="{{ described }}" height="26" width="100%">
{% for start, width, words, colour in parts %}
<rect x="{{ '%.3f' % start }}%" y="0" width="{{ '%.3f' % width }}%" height="26"
 fill="{{ colour }}"><title>{{ words }}</title></rect>{% endfor %}
</svg></div>{% endfor %}
{% include "legend" %}
"""
