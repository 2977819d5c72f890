"""Ctrl-C and SIGTERM: an answer at once, then an orderly end; the second time, no more waiting."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console

INTERRUPTED = 130


@contextmanager
def interruptible(console: Console) -> Iterator[None]:
    """Raise `KeyboardInterrupt` at the first signal, having said so; leave at the second.

    Leaving so strands nothing: whoever guards a launch's processes sees this one's end.
    """
    answered = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal answered
        if answered:
            console.show_cursor()
            os._exit(INTERRUPTED)
        answered = True
        console.print("fedhlm: interrupted, ending what was started; once more to leave at once")
        raise KeyboardInterrupt

    # Where a shell has a background command ignore Ctrl-C, it stays so.
    caught = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in caught}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
