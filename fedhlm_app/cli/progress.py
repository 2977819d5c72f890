"""How a run's progress looks: a bar on a terminal, one line per round elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from fedhlm_app.runs import Progress
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
        yield _lines(console)
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
        lost = 0

        def listen(progress: Progress | None) -> None:
            nonlocal lost
            if progress is not None:
                bar.update(task, completed=progress["round"], description=shares(progress))
                if warning := lost_since(lost, progress):
                    bar.console.print(warning, style="yellow")
                lost = progress["counts"].get("unresolved", 0)

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


def lost_since(before: int, progress: Progress) -> str:
    """A warning for tokens that stayed unresolved beyond the `before` earlier ones; or empty."""
    lost = progress["counts"].get("unresolved", 0) - before
    if lost <= 0:
        return ""
    return f"round {progress['round']}: {lost:,} tokens stayed unresolved, the LLM was not reached"


def _lines(console: Console) -> Listener:
    last = lost = 0

    def listen(progress: Progress | None) -> None:
        nonlocal last, lost
        if progress is not None and progress["round"] != last:
            last = progress["round"]
            console.print(f"round {last}/{progress['rounds']}: {shares(progress)}")
            if warning := lost_since(lost, progress):
                console.print(warning, style="yellow")
            lost = progress["counts"].get("unresolved", 0)

    return listen
