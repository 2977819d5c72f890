"""How progress looks: a bar on a terminal; elsewhere one line per round, or per phase."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from fedhlm_app.results.runs import Progress
from fedhlm_app.settings import Settings

Listener = Callable[[Progress | None], None]


@contextmanager
def watch(console: Console, settings: Settings) -> Iterator[Listener]:
    """Yield the function that a launch calls with its progress.

    Parameters
    ----------
    console : Console
        Where to draw; standard error, so that standard output stays for results.
    settings : Settings
        The run's settings.
    """
    console.print(
        f"{settings.clients} clients in {settings.clusters} clusters, {settings.rounds} rounds, "
        f"{settings.policy} policy, {settings.decoding} decoding; starting Flower and Ray ...",
        style="dim",
    )
    if not console.is_terminal:
        yield _lines(console, settings)
        return
    bar = Bar(
        TextColumn("round"),
        MofNCompleteColumn(),
        BarColumn(bar_width=None),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    with bar:
        task = bar.add_task("", total=settings.rounds)
        losses = _Losses(settings)

        def listen(progress: Progress | None) -> None:
            if progress is not None:
                bar.update(task, completed=progress["round"], description=shares(progress))
                if warning := losses.warning(progress):
                    bar.console.print(warning, style="yellow")

        yield listen


def shares(progress: Progress) -> str:
    """Say in a few words how the tokens so far were decided."""
    counts = progress["counts"]
    total = sum(counts.values())
    if total == 0:
        return "no tokens yet"
    asked = counts.get("llm_accepted", 0) + counts.get("llm_resampled", 0)
    lost = counts.get("unresolved", 0)
    words = f"{total:,} tokens, {asked / total:.1%} asked the LLM"
    return f"{words}, {lost:,} unresolved" if lost else words


class _Losses:
    """Warns of tokens that stayed unresolved, each once."""

    def __init__(self, settings: Settings) -> None:
        # What a resumed run lost in its earlier life is no news.
        self._before: int | None = None if settings.resume else 0

    def warning(self, progress: Progress) -> str:
        """A sentence where more were lost since the last call; else empty."""
        lost = progress["counts"].get("unresolved", 0)
        more = 0 if self._before is None else lost - self._before
        self._before = lost
        if more <= 0:
            return ""
        return f"round {progress['round']}: {more:,} tokens stayed unresolved, without the LLM"


def _lines(console: Console, settings: Settings) -> Listener:
    last, losses = 0, _Losses(settings)

    def listen(progress: Progress | None) -> None:
        nonlocal last
        if progress is not None and progress["round"] != last:
            last = progress["round"]
            console.print(f"round {last}/{progress['rounds']}: {shares(progress)}")
            if warning := losses.warning(progress):
                console.print(warning, style="yellow")

    return listen


@contextmanager
def steps(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """What is told of a phase, and how many of how many steps of it are done.

    Draws a bar on a terminal, a line for each new phase elsewhere.
    """
    if not console.is_terminal:
        last = ""

        def tell(what: str, done: int, total: int) -> None:
            nonlocal last
            if what != last:
                console.print(f"{what} ...")
                last = what

        yield tell
        return
    bar = Bar(
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        BarColumn(bar_width=None),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    with bar:
        task = bar.add_task("starting")
        yield lambda what, done, total: bar.update(
            task, description=what, completed=done, total=total
        )
