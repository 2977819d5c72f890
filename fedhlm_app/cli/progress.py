"""How progress looks: a bar on a terminal; elsewhere one line per round, or per phase."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

if TYPE_CHECKING:
    from fedhlm_app.launch import Listener
    from fedhlm_app.results.runs import Progress
    from fedhlm_app.settings import Settings


_LATEST = 6
_A_MINUTE = 60.0


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
        f"clients: {settings.clients}, clusters: {settings.clusters}, rounds: {settings.rounds}; "
        f"{settings.policy} policy, {settings.decoding} decoding",
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
        losses, pace = _Losses(settings), _Pace()

        def listen(progress: Progress | str) -> None:
            if isinstance(progress, str):
                bar.update(task, description=progress)
                return
            words = f"{shares(progress)}, {pace.words(progress)}"
            bar.update(task, completed=progress["round"], description=words)
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


class _Pace:
    """How long the rest of a run may take: as long a round as the latest ones on average."""

    def __init__(self) -> None:
        # Later rounds are quicker, as caches fill.
        self._seen: deque[tuple[int, float]] = deque(maxlen=_LATEST)

    def words(self, progress: Progress) -> str:
        """The time left in words, by the clock at which each round was first seen done."""
        done, now = progress["round"], time.monotonic()
        # Until a first round is done, models are loaded.
        if done and (not self._seen or done > self._seen[-1][0]):
            self._seen.append((done, now))
        if done >= progress["rounds"]:
            return "ending Flower and Ray"
        if len(self._seen) < 2:
            return "time left unknown"
        (first, begin), (last, end) = self._seen[0], self._seen[-1]
        each = (end - begin) / (last - first)
        return f"{_about(each * (progress['rounds'] - done) - (now - end))} left"


def _about(seconds: float) -> str:
    """A duration as a person would say it."""
    if seconds < 1:
        return "a moment"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


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
    last: int | str = 0
    losses, pace = _Losses(settings), _Pace()

    def listen(progress: Progress | str) -> None:
        nonlocal last
        if isinstance(progress, str):
            if progress != last:
                last = progress
                console.print(f"{progress} ...", style="dim")
            return
        left = pace.words(progress)
        if progress["round"] in (0, last):
            return
        last = progress["round"]
        console.print(f"round {last}/{progress['rounds']}: {shares(progress)}, {left}")
        if warning := losses.warning(progress):
            console.print(warning, style="yellow")

    return listen


@contextmanager
def steps(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """What is told of a phase, and how many of how many steps of it are done.

    Draws a bar on a terminal; elsewhere a line for each new phase, and then one a minute.
    """
    if not console.is_terminal:
        last, said = "", 0.0

        def tell(what: str, done: int, total: int) -> None:
            nonlocal last, said
            now = time.monotonic()
            if what == last and now < said + _A_MINUTE:
                return
            console.print(f"{what} ..." if what != last else f"{what}: {done:,} of {total:,}")
            last, said = what, now

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
