"""Whether a run is at work in a folder, by a lock that goes with the processes that hold it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedhlm_app.settings import SettingsError

LOOK_AGAIN_SECONDS = 0.05
"""Who only looks holds the lock for a moment: others look twice, so far apart."""


def is_at_work(folder: Path) -> bool:
    """True while a run is at work in a folder, of whatever command; False on Windows."""
    if sys.platform == "win32":
        return False
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        return not _alone(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def at_work(folder: Path, *, launched: bool = False) -> Iterator[None]:
    """Mark a run folder as one that is worked in.

    A launcher and its ServerApp both hold the mark: where one is killed, the other has it still.

    Parameters
    ----------
    folder : Path
    launched : bool
        The caller works for a launcher, which holds the mark already.

    Raises
    ------
    SettingsError
        When another run is at work there.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if not launched and not _alone(descriptor):
            raise SettingsError(f"'{folder}': a run is at work there; wait until it has ended")
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def _alone(descriptor: int) -> bool:
    """Take a folder's lock; False where others hold it."""
    import fcntl

    for pause in (LOOK_AGAIN_SECONDS, 0.0):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(pause)
            continue
        except OSError:
            return True  # a file system without locks
        return True
    return False
