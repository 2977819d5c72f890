"""Where the trace of a refused command goes: people see one line, and may need the rest."""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console

from fedhlm_app.results.runs import write_atomically

logger = logging.getLogger(__name__)


def error_log() -> Path:
    """The file that holds the trace of the last command that was refused."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "fedhlm" / "last-error.log"


def keep_trace(error: BaseException) -> None:
    """Write an error's trace to `error_log`; that this fails is no reason to fail otherwise."""
    path = error_log()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join(traceback.format_exception(error)))
    except OSError as failure:
        logger.info("the trace of %r is not kept: %s", error, failure)


def say(console: Console, message: str) -> None:
    """Print an error, each line behind the command's name."""
    for line in message.splitlines():
        console.print(f"fedhlm: {line}", style="red", markup=False, soft_wrap=True)


@contextmanager
def ends_with(status: int, *kinds: type[Exception], trace: bool = False) -> Iterator[None]:
    """End the command with this exit status where one of these errors is raised, and say why.

    Parameters
    ----------
    status : int
    kinds : type of Exception
        Others pass.
    trace : bool
        Keep the error's trace in `error_log`.
    """
    try:
        yield
    except kinds as error:
        say(Console(stderr=True, highlight=False), str(error))
        if trace:
            keep_trace(error)
        raise typer.Exit(status) from None
