"""Charts as inline SVG: lines and stacked bars over the rounds of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from fedhlm_app.results.report.scale import Scale, short, ticks
from fedhlm_app.results.report.templates import fill
from fedhlm_app.results.stages import PALETTE, STAGE_COLOURS, STAGE_WORDS

WIDTH, HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 30

Points = Sequence[tuple[float, float]]


def line_chart(
    series: Mapping[str, Points], *, percent: bool = False, axis: str = "round"
) -> Markup:
    """Draw one line per series; the first is the thick one.

    Parameters
    ----------
    series : Mapping[str, Points]
        Name to (round, value) pairs; empty series are left out.
    percent : bool
        Values are shares, written in per cent.
    axis : str
        What goes across, if not rounds.

    Returns
    -------
    Markup
        SVG and its legend, or a sentence when there is nothing to draw.
    """
    drawn = {name: points for name, points in series.items() if points}
    if not drawn:
        return fill("nothing")
    values = [value for points in drawn.values() for _, value in points]
    rounds = [number for points in drawn.values() for number, _ in points]
    marks = ticks(min(values), max(values))
    across, up = _scales(min(rounds), max(rounds), marks)
    exact = _percent if percent else "{:.5g}".format
    lines = [
        [(across(x), up(y), f"{name}, {axis} {x:g}: {exact(y)}") for x, y in points]
        for name, points in drawn.items()
    ]
    written = _percent if percent else short
    return _chart(across, up, marks, written, list(drawn), axis=axis, lines=lines)


def stacked_bars(
    layers: Mapping[str, Mapping[int, float]], *, shares: bool = False, unit: str = ""
) -> Markup:
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
        return fill("nothing")
    totals = {n: sum(layer.get(n, 0.0) for layer in drawn.values()) for n in rounds}
    marks = ticks(0.0, 1.0 if shares else max(totals.values()))
    across, up = _scales(min(rounds) - 0.5, max(rounds) + 0.5, marks)
    width = max(1.0, (across(1) - across(0)) * 0.82)
    floor = dict.fromkeys(rounds, 0.0)
    bars = []
    for index, (name, layer) in enumerate(drawn.items()):
        for number in rounds:
            amount = layer.get(number, 0.0)
            part = amount / ((totals[number] or 1.0) if shares else 1.0)
            low, high = floor[number], floor[number] + part
            floor[number] = high
            exact = f"{amount:,.6g} {unit}".strip()
            share = f" ({part:.1%})" if shares else ""
            words = f"round {number}, {name}: {exact}{share}"
            bars.append((across(number) - width / 2, up(high), width, up(low), index, words))
    return _chart(across, up, marks, _percent if shares else short, list(drawn), bars=bars)


def share_bar(amounts: Mapping[str, int]) -> Markup:
    """Draw one horizontal bar of shares, with a legend that carries the figures."""
    drawn = {name: amount for name, amount in amounts.items() if amount}
    total = sum(drawn.values())
    parts, start = [], 0.0
    for name, amount in drawn.items():
        width = amount / total * 100
        parts.append((start, width, f"{name}: {amount:,}"))
        start += width
    words = [f"{name} {amount:,} ({amount / total:.1%})" for name, amount in drawn.items()]
    return fill("shares", parts=parts, names=words, colours=_colours(list(drawn)))


def _scales(first: float, last: float, marks: Sequence[float]) -> tuple[Scale, Scale]:
    if first == last:
        first, last = first - 0.5, last + 0.5
    return (
        Scale(first, last, _LEFT, WIDTH - _RIGHT),
        Scale(marks[0], marks[-1], HEIGHT - _BOTTOM, _TOP),
    )


def _chart(
    across: Scale,
    up: Scale,
    marks: Sequence[float],
    written: Callable[[float], str],
    names: Sequence[str],
    *,
    axis: str = "round",
    lines: Sequence[Sequence[tuple[float, float, str]]] = (),
    bars: Sequence[tuple[float, float, float, float, int, str]] = (),
) -> Markup:
    """Draw axes, lines and bars, and the legend of their names."""
    numbers = [
        number
        for number in ticks(across.low, across.high, about=8)
        if across.low <= number <= across.high and number == int(number)
    ]
    return fill(
        "chart",
        width=WIDTH,
        height=HEIGHT + 4,
        left=_LEFT,
        right=WIDTH - _RIGHT,
        foot=HEIGHT - 10,
        across=[(up(mark), written(mark)) for mark in marks],
        rounds=[(across(number), f"{number:g}") for number in numbers],
        axis=axis,
        lines=lines,
        bars=bars,
        names=names,
        colours=_colours(names),
    )


def _colours(names: Sequence[str]) -> list[str]:
    """A stage's own colour; that of its place for any other series."""
    stages = {words: STAGE_COLOURS[stage] for stage, words in STAGE_WORDS.items()}
    return [stages.get(name, PALETTE[i % len(PALETTE)]) for i, name in enumerate(names)]


def _percent(value: float) -> str:
    return f"{value * 100:g}%" if abs(value * 1000 - round(value * 1000)) < 1e-9 else f"{value:.2%}"
