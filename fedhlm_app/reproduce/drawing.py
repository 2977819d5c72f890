"""Figures as SVG files, the same bytes for the same numbers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas

from fedhlm_app.results.stages import PALETTE, STAGE_COLOURS, STAGE_WORDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fedhlm_app.reproduce.pieces import Figure

_COLOURS = {words: STAGE_COLOURS[stage] for stage, words in STAGE_WORDS.items()}
_WIDTH, _HEIGHT = 5.0, 3.4  # inches of a panel


def svg(panels: Sequence[Figure]) -> str:
    """The panels side by side, as the text of an SVG file."""
    # Names of clip paths are drawn at random otherwise.
    with mpl.rc_context({"svg.hashsalt": "fedhlm", "font.size": 9}):
        canvas = Canvas(figsize=(_WIDTH * len(panels), _HEIGHT), layout="constrained")
        for axes, panel in zip(
            canvas.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            _draw(axes, panel)
        written = io.StringIO()
        canvas.savefig(written, format="svg", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines()) + "\n"


def _draw(axes: Axes, panel: Figure) -> None:
    floor: dict[str, float] = {}
    for index, (name, points) in enumerate(panel.series.items()):
        colour = _COLOURS.get(name, PALETTE[index % len(PALETTE)])
        across, up = [x for x, _ in points], [y for _, y in points]
        if panel.kind == "lines":
            axes.plot(across, up, label=name, color=colour, marker=".", markersize=3, linewidth=1.2)
        elif panel.kind == "points":
            axes.plot(across, up, label=name, color=colour, marker="o", markersize=4, linestyle="")
        else:
            axes.bar(across, up, 0.7, [floor.get(x, 0.0) for x in across], label=name, color=colour)
            floor |= {x: floor.get(x, 0.0) + y for x, y in points}
    axes.set_xlabel(panel.across)
    axes.set_ylabel(panel.up)
    axes.spines[["top", "right"]].set_visible(False)
    if panel.kind == "bars" and len(floor) > 4:
        axes.tick_params("x", rotation=30)
    if len(panel.series) > 1:
        axes.legend(frameon=False, fontsize=8)
