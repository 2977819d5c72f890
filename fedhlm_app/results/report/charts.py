"""Charts as inline SVG: lines and stacked bars over the rounds of a run, bars of shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from fedhlm_app.results.report.scale import Scale, short, size, ticks
from fedhlm_app.results.report.templates import fill
from fedhlm_app.results.stages import PALETTE, STAGE_COLOURS, STAGE_WORDS

WIDTH, HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 12, 10, 30

Points = Sequence[tuple[float, float]]
Level = tuple[float, str]


def line_chart(
    series: Mapping[str, Points],
    *,
    title: str,
    percent: bool = False,
    axis: str = "round",
    level: Level | None = None,
    bands: Sequence[tuple[float, float]] = (),
    band_words: str = "",
) -> Markup:
    """Draw one line per series; the first is the thick one.

    Parameters
    ----------
    series : Mapping[str, Points]
        Name to (round, value) pairs; empty series are left out.
    title : str
        Name of the chart for those who do not see it.
    percent : bool
        Values are shares, written in per cent.
    axis : str
        What goes across, if not rounds.
    level : (float, str) or None
        A value that the lines are held against, and what it is.
    bands : sequence of (float, float)
        Stretches of rounds, from and to, that are shaded.
    band_words : str
        What they are.

    Returns
    -------
    Markup
        SVG, its legend and its values, or a sentence when there is nothing to draw.
    """
    drawn = {name: points for name, points in series.items() if points}
    if not drawn:
        return fill("nothing")
    values = [value for points in drawn.values() for _, value in points]
    rounds = [number for points in drawn.values() for number, _ in points]
    rounds += [edge for band in bands for edge in band]
    marks = ticks(*_ends([*values, level[0]] if level else values))
    across, up = _scales(min(rounds), max(rounds), marks)
    exact: Callable[[float], str] = _percent if percent else "{:.5g}".format
    lines = [
        [(across(x), up(y), f"{name}, {axis} {x:g}: {exact(y)}") for x, y in points]
        for name, points in drawn.items()
    ]
    cells = {name: {x: exact(y) for x, y in points} for name, points in drawn.items()}
    return _chart(
        across,
        up,
        marks,
        _percent if percent else short,
        cells,
        title=f"{title}: line chart, {_course(drawn, axis, exact)}",
        axis=axis,
        lines=lines,
        level=None if level is None else (up(level[0]), f"{level[1]} {exact(level[0])}"),
        bands=[(across(low), across(high) - across(low)) for low, high in bands],
        band_words=band_words,
    )


def stacked_bars(
    layers: Mapping[str, Mapping[int, float]],
    *,
    title: str,
    shares: bool = False,
) -> Markup:
    """Draw one bar per round, its layers on top of each other.

    Parameters
    ----------
    layers : Mapping[str, Mapping[int, float]]
        Name to round to amount, each at least 0; layers of zeros are left out.
    title : str
        Name of the chart for those who do not see it.
    shares : bool
        Scale every bar to one and write per cent; otherwise amounts are bytes.
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
    bars: list[tuple[float, float, float, float, int, str]] = []
    cells: dict[str, dict[float, str]] = {}
    for index, (name, layer) in enumerate(drawn.items()):
        cells[name] = {}
        for number in rounds:
            amount = layer.get(number, 0.0)
            part = amount / ((totals[number] or 1.0) if shares else 1.0)
            low, high = floor[number], floor[number] + part
            floor[number] = high
            exact = f"{amount:,g} ({part:.1%})" if shares else size(amount)
            cells[name][float(number)] = exact
            words = f"round {number}, {name}: {exact}"
            bars.append((across(number) - width / 2, up(high), width, up(low), index, words))
    return _chart(
        across,
        up,
        marks,
        _percent if shares else size,
        cells,
        title=f"{title}: bars of {', '.join(drawn)}, {_span(rounds, 'round')}",
        bars=bars,
    )


def share_bars(rows: Mapping[str, Mapping[str, int]], *, title: str) -> Markup:
    """Draw a horizontal bar of shares for each row, and one legend.

    Parameters
    ----------
    rows : Mapping[str, Mapping[str, int]]
        Label to name to amount; rows and amounts of nothing are left out. The legend of a single
        row carries the figures.
    title : str
        Name of the chart for those who do not see it.
    """
    drawn = {
        label: {name: amount for name, amount in amounts.items() if amount}
        for label, amounts in rows.items()
        if any(amounts.values())
    }
    names = list(dict.fromkeys(name for amounts in rows.values() for name in amounts))
    names = [name for name in names if any(name in amounts for amounts in drawn.values())]
    colours = dict(zip(names, _colours(names), strict=True))
    bars = []
    for label, amounts in drawn.items():
        total, start, parts = sum(amounts.values()), 0.0, []
        told = {n: f"{n} {amount:,} ({amount / total:.1%})" for n, amount in amounts.items()}
        for name, amount in amounts.items():
            width = amount / total * 100
            parts.append((start, width, told[name], colours[name]))
            start += width
        described = ": ".join(part for part in (title, label, ", ".join(told.values())) if part)
        bars.append((label, described, parts))
    legend = list(told.values()) if len(bars) == 1 else names
    return fill("shares", bars=bars, **_legend(legend, list(colours.values())))


def stage_legend(stages: Sequence[str]) -> Markup:
    """The legend of stages that are drawn elsewhere."""
    return fill("legend", **_legend([STAGE_WORDS[s] for s in stages]))


def _legend(names: Sequence[str], colours: Sequence[str] | None = None) -> dict[str, Any]:
    """What a legend asks for; names in their own colours unless told others."""
    given = _colours(names) if colours is None else colours
    return {"names": names, "colours": given, "level": None, "bands": (), "band_words": ""}


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _span(numbers: Sequence[float], axis: str) -> str:
    return f"{axis} {min(numbers):g} to {max(numbers):g}"


def _course(drawn: Mapping[str, Points], axis: str, exact: Callable[[float], str]) -> str:
    """Each line in words: where it begins and where it ends."""
    return "; ".join(
        f"{name} from {exact(points[0][1])} at {axis} {points[0][0]:g} "
        f"to {exact(points[-1][1])} at {axis} {points[-1][0]:g}"
        for name, points in drawn.items()
    )


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
    cells: Mapping[str, Mapping[float, str]],
    *,
    title: str,
    axis: str = "round",
    lines: Sequence[Sequence[tuple[float, float, str]]] = (),
    bars: Sequence[tuple[float, float, float, float, int, str]] = (),
    level: Level | None = None,
    bands: Sequence[tuple[float, float]] = (),
    band_words: str = "",
) -> Markup:
    """Draw axes, lines and bars, the legend of their names, and the table of their `cells`."""
    numbers = [
        number
        for number in ticks(across.low, across.high, about=8)
        if across.low <= number <= across.high and (axis != "round" or number == int(number))
    ]
    rounds = sorted({number for column in cells.values() for number in column})
    values = [
        (f"{number:g}", [column.get(number, "") for column in cells.values()]) for number in rounds
    ]
    return fill(
        "chart",
        title=title,
        width=WIDTH,
        height=HEIGHT + 4,
        left=_LEFT,
        right=WIDTH - _RIGHT,
        top=_TOP,
        floor=HEIGHT - _BOTTOM,
        foot=HEIGHT - 8,
        across=[(up(mark), written(mark)) for mark in marks],
        rounds=[(across(number), f"{number:g}") for number in numbers],
        axis=axis,
        lines=lines,
        bars=bars,
        values=values,
        **_legend(list(cells)) | {"level": level, "bands": bands, "band_words": band_words},
    )


def _colours(names: Sequence[str]) -> list[str]:
    """A stage's own colour; that of its place for any other series."""
    stages = {words: STAGE_COLOURS[stage] for stage, words in STAGE_WORDS.items()}
    return [stages.get(name, PALETTE[i % len(PALETTE)]) for i, name in enumerate(names)]


def _percent(value: float) -> str:
    return f"{value * 100:g}%" if abs(value * 1000 - round(value * 1000)) < 1e-9 else f"{value:.2%}"
