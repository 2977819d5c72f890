"""What a reproduction is made of: pieces, each one table or figure of a paper and what it says."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from scipy.stats import t as student

AG_NEWS_TEXTS = 120_000
"""In the official training split."""

Tell = Callable[[str], None]
"""Told in a few words what is being worked on."""


@dataclass(frozen=True)
class Measured:
    """A figure measured with several seeds.

    Attributes
    ----------
    mean : float
    half : float
        Half the width of Student's 95 % interval of the mean; 0 with one seed.
    """

    mean: float
    half: float = 0.0

    @classmethod
    def of(cls, values: Sequence[float]) -> Measured:
        """The mean of at least one value, each from a seed of its own."""
        given = np.asarray(values, np.float64)
        if len(given) < 2:
            return cls(float(given.mean()))
        error = float(given.std(ddof=1)) / math.sqrt(len(given))
        return cls(float(given.mean()), float(student.ppf(0.975, len(given) - 1)) * error)


Cell = str | int | float | Measured | None


class SumsError(ValueError):
    """Parts of a table do not add up to what it says is their whole."""


@dataclass(frozen=True)
class Table:
    """A table of numbers and words.

    Attributes
    ----------
    columns : sequence of str
        Headings, no two alike.
    rows : sequence of sequences of Cell
        As long as `columns`.
    sums : sequence of (parts, whole)
        Columns whose cells add up to the cell of another, in every row that has numbers there.
    totals : sequence of str
        Columns in which the last row is the sum of all others.

    Raises
    ------
    SumsError
        Where they do not.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    sums: Sequence[tuple[Sequence[str], str]] = ()
    totals: Sequence[str] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"row {row}: {len(row)} cells; allowed: {len(self.columns)}")
            named = dict(zip(self.columns, row, strict=True))
            for parts, whole in self.sums:
                values = [number(named[name]) for name in (*parts, whole)]
                _check(f"{row[0]}: {' + '.join(parts)}", values)
        for name in self.totals:
            at = self.columns.index(name)
            _check(f"{name} of all rows", [number(row[at]) for row in self.rows])


def _check(what: str, values: Sequence[float | None]) -> None:
    """Raise SumsError where the last number is not the sum of the others."""
    if None not in values:
        *parts, whole = (value or 0.0 for value in values)
        if not math.isclose(sum(parts), whole, rel_tol=1e-9, abs_tol=1e-6):
            raise SumsError(f"{what} = {sum(parts)}, not {whole}")


def number(cell: Cell) -> float | None:
    """The number in a cell; None where it has words or nothing."""
    if isinstance(cell, Measured):
        return cell.mean
    return None if cell is None or isinstance(cell, str) else float(cell)


@dataclass(frozen=True)
class Figure:
    """One panel of a figure.

    Attributes
    ----------
    kind : str
        ``lines`` and ``points`` have numbers across; ``bars`` words, one series on the other.
    series : mapping of str to sequence of (across, up)
        By name; a stage's own words (`fedhlm_app.results.stages`) bring its colour.
    across, up : str
        Names of the axes, with units.
    """

    kind: Literal["lines", "points", "bars"]
    series: Mapping[str, Sequence[tuple[Any, float]]]
    across: str
    up: str

    def __post_init__(self) -> None:
        if not any(len(points) for points in self.series.values()):
            raise ValueError(f"figure of {self.up} over {self.across}: has no points")


@dataclass(frozen=True)
class Finding:
    """What came of a piece.

    Attributes
    ----------
    words : str
        A plain sentence or two: agreement with the paper, or why not.
    table : Table or None
        With the paper's own figures in a column where it has some.
    figures : sequence of Figure
        Panels side by side.
    """

    words: str
    table: Table | None = None
    figures: Sequence[Figure] = ()


@dataclass(frozen=True)
class Options:
    """What a reproduction was asked for.

    Attributes
    ----------
    data : str
        Dataset: ``builtin``, a hub name, a file or a folder.
    quick : bool
        Few seeds and small runs: shows that everything works, and roughly what comes out.
    seeds : int
        Runs of everything random, >= 1.
    settings : mapping of str to str
        Settings of all runs, such as the pair.
    texts : int
        How many the data hold; 0: not counted.
    """

    data: str = "builtin"
    quick: bool = False
    seeds: int = 5
    settings: Mapping[str, Any] = field(default_factory=dict)
    texts: int = 0

    @property
    def dataset(self) -> str:
        """The data in words, without the way to their folder."""
        name = Path(self.data).name
        return {"builtin": "the built-in texts", "ag_news": "AG News"}.get(name, name)

    @property
    def counted(self) -> str:
        """The data and how many texts of them there are, which of AG News may be a part."""
        if not self.texts:
            return self.dataset
        of = f" of {AG_NEWS_TEXTS:,} training" if self.dataset == "AG News" else ""
        return f"{self.dataset} ({self.texts:,}{of} texts)"


Inputs = TypeVar("Inputs")


@dataclass(frozen=True)
class Piece(Generic[Inputs]):
    """One table or figure.

    Attributes
    ----------
    name : str
        Of its files, such as ``table-4``.
    title : str
        What it shows, with the paper's number.
    make : callable
        From what the experiment opened.
    """

    name: str
    title: str
    make: Callable[[Inputs], Finding]


@dataclass(frozen=True)
class Experiment(Generic[Inputs]):
    """All pieces of one paper.

    Attributes
    ----------
    name, title : str
        Its command, and its heading.
    setup : callable
        Options to a sentence: models, data, clients, rounds, tokens.
    open : callable
        Options, a folder that may keep what takes long, and whom to tell, to what pieces are made
        from. Called once, when a piece is not there yet.
    pieces : sequence of Piece
        In the order of the page.
    """

    name: str
    title: str
    setup: Callable[[Options], str]
    open: Callable[[Options, Path, Tell], Inputs]
    pieces: Sequence[Piece[Inputs]]
