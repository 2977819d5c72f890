"""Charts as inline SVG: lines and stacked bars over the rounds of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

from fedhlm_app.report.scale import Scale, short, ticks

WIDTH, HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 30

# Okabe and Ito's colours, told apart with any colour vision.
PALETTE = (
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#b8a900", "#7f7f7f",
)  # fmt: skip

Points = Sequence[tuple[float, float]]


def line_chart(series: Mapping[str, Points], *, percent: bool = False) -> str:
    """Draw one line per series; the first is the thick one.

    Parameters
    ----------
    series : Mapping[str, Points]
        Name to (round, value) pairs; empty series are left out.
    percent : bool
        Values are shares, written in per cent.

    Returns
    -------
    str
        SVG and its legend, or a sentence when there is nothing to draw.
    """
    drawn = {name: points for name, points in series.items() if points}
    if not drawn:
        return _nothing()
    values = [value for points in drawn.values() for _, value in points]
    rounds = [number for points in drawn.values() for number, _ in points]
    marks = ticks(min(values), max(values))
    across, up = _scales(min(rounds), max(rounds), marks)
    written = _percent if percent else short
    parts = [_axes(across, up, marks, written)]
    # The first series is drawn last, on top of the others.
    for index, (name, points) in reversed(list(enumerate(drawn.items()))):
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in points)
        width = 2.6 if index == 0 else 1.4
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour(index)}" '
            f'stroke-width="{width}" stroke-linejoin="round"/>'
        )
        parts += [
            f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="3" fill="{colour(index)}" '
            f'class="dot"><title>{escape(name)}, round {x:g}: '
            f"{_percent(y) if percent else format(y, '.5g')}</title></circle>"
            for x, y in points
        ]
    return _svg(parts) + legend(list(drawn))


def stacked_bars(
    layers: Mapping[str, Mapping[int, float]], *, shares: bool = False, unit: str = ""
) -> str:
    """Draw one bar per round, its layers on top of each other.

    Parameters
    ----------
    layers : Mapping[str, Mapping[int, float]]
        Name to round to amount, each at least 0; layers of zeros are left out.
    shares : bool
        Scale every bar to one and write per cent.
    unit : str
        Unit of the amounts, for the text under the pointer.
    """
    drawn = {name: layer for name, layer in layers.items() if any(layer.values())}
    rounds = sorted({number for layer in drawn.values() for number in layer})
    if not rounds:
        return _nothing()
    totals = {n: sum(layer.get(n, 0.0) for layer in drawn.values()) for n in rounds}
    scaled = {
        name: {n: layer.get(n, 0.0) / ((totals[n] or 1.0) if shares else 1.0) for n in rounds}
        for name, layer in drawn.items()
    }
    marks = ticks(0.0, 1.0 if shares else max(totals.values()))
    across, up = _scales(min(rounds) - 0.5, max(rounds) + 0.5, marks)
    parts = [_axes(across, up, marks, _percent if shares else short)]
    width = max(1.0, (across(1) - across(0)) * 0.82)
    floor = dict.fromkeys(rounds, 0.0)
    for index, (name, layer) in enumerate(scaled.items()):
        for number in rounds:
            low, high = floor[number], floor[number] + layer[number]
            floor[number] = high
            exact = f"{drawn[name].get(number, 0.0):,.6g} {unit}".strip()
            share = f" ({layer[number]:.1%})" if shares else ""
            parts.append(
                f'<rect x="{across(number) - width / 2:.1f}" y="{up(high):.1f}" '
                f'width="{width:.1f}" height="{up(low) - up(high):.1f}" fill="{colour(index)}">'
                f"<title>round {number}, {escape(name)}: {exact}{share}</title></rect>"
            )
    return _svg(parts) + legend(list(drawn))


def share_bar(amounts: Mapping[str, int]) -> str:
    """Draw one horizontal bar of shares, with a legend that carries the figures."""
    drawn = {name: amount for name, amount in amounts.items() if amount}
    total = sum(drawn.values())
    parts, start = [], 0.0
    for index, (name, amount) in enumerate(drawn.items()):
        width = amount / total * 100
        parts.append(
            f'<rect x="{start:.3f}%" y="0" width="{width:.3f}%" height="26" '
            f'fill="{colour(index)}"><title>{escape(name)}: {amount:,}</title></rect>'
        )
        start += width
    words = [f"{name} {amount:,} ({amount / total:.1%})" for name, amount in drawn.items()]
    return f'<svg class="bar" role="img" height="26" width="100%">{"".join(parts)}</svg>' + legend(
        words
    )


def legend(names: Sequence[str]) -> str:
    """Return the legend of a chart whose series are in this order."""
    items = "".join(
        f'<li><i style="background:{colour(index)}"></i>{escape(name)}</li>'
        for index, name in enumerate(names)
    )
    return f'<ul class="legend">{items}</ul>'


def colour(index: int) -> str:
    """Return the colour of a series by its place."""
    return PALETTE[index % len(PALETTE)]


def _scales(first: float, last: float, marks: Sequence[float]) -> tuple[Scale, Scale]:
    if first == last:
        first, last = first - 0.5, last + 0.5
    return (
        Scale(first, last, _LEFT, WIDTH - _RIGHT),
        Scale(marks[0], marks[-1], HEIGHT - _BOTTOM, _TOP),
    )


def _axes(across: Scale, up: Scale, marks: Sequence[float], written: Callable[[float], str]) -> str:
    parts = []
    for mark in marks:
        y = up(mark)
        parts.append(
            f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{written(mark)}</text>'
        )
    for number in ticks(across.low, across.high, about=8):
        if across.low <= number <= across.high and number == int(number):
            parts.append(
                f'<text x="{across(number):.1f}" y="{HEIGHT - 10}" text-anchor="middle">'
                f"{number:g}</text>"
            )
    parts.append(f'<text x="{_LEFT - 6}" y="{HEIGHT - 10}" text-anchor="end">round</text>')
    return "".join(parts)


def _svg(parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT + 4}" role="img">{"".join(parts)}</svg>'


def _percent(value: float) -> str:
    return f"{value * 100:g}%" if abs(value * 1000 - round(value * 1000)) < 1e-9 else f"{value:.2%}"


def _nothing() -> str:
    return '<p class="none">This run recorded nothing to draw here.</p>'
