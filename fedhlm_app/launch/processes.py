"""Finding and ending the processes of one launch, and no others."""

from __future__ import annotations

import ctypes
import signal
import socket
import sys
from collections.abc import Callable

import psutil

LAUNCH_VARIABLE = "FEDHLM_LAUNCH"
"""Environment variable that marks every process of a launch with the launch's own number."""


def free_port() -> int:
    """Return a port on 127.0.0.1 that was free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def die_with_parent() -> Callable[[], None] | None:
    """Return what a child runs first so that it gets SIGTERM when its parent is killed.

    None where the system has no such thing (everything but Linux).
    """
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    set_death_signal = 1  # PR_SET_PDEATHSIG, linux/prctl.h

    def arrange() -> None:
        libc.prctl(set_death_signal, signal.SIGTERM)

    return arrange


def marked(launch: str) -> list[psutil.Process]:
    """Return the living processes whose environment carries this launch's number.

    Flower and Ray start their children in sessions of their own, so neither a process group nor
    the tree below the first child finds them all; the inherited environment does.
    """
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(LAUNCH_VARIABLE) == launch:
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess, OSError):
            # Somebody else's, or gone: not ours either way.
            continue
    return found


def end_all(launch: str, grace: float = 5.0) -> int:
    """End every process of a launch: asked first, killed after `grace` seconds.

    Returns
    -------
    int
        Processes that had to be ended.
    """
    ended: set[int] = set()
    # Twice, because a process that is just being started may escape the first look.
    for patience in (grace, 1.0):
        processes = marked(launch)
        ended.update(process.pid for process in processes)
        for process in processes:
            _signal(process.terminate)
        _, alive = psutil.wait_procs(processes, timeout=patience)
        for process in alive:
            _signal(process.kill)
        psutil.wait_procs(alive, timeout=patience)
    return len(ended)


def _signal(send: Callable[[], None]) -> None:
    try:
        send()
    except psutil.NoSuchProcess:
        return
