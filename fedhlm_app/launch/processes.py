"""Finding and ending the processes of one launch, and no others.

Run as a script, this file is the launch's guard: it waits for the end of its standard input,
which comes when the launching process closes it or dies in whatever way, and then ends what the
launch left behind. It imports little, because it is one more process beside every run.
"""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress

import psutil

LAUNCH_VARIABLE = "FEDHLM_LAUNCH"
"""Environment variable that marks every process of a launch with the launch's own number."""


PORTS = range(20_000, 32_768)
"""Ports that are chosen from: systems give higher ones to whoever connects to something."""


def free_port() -> int:
    """Return a port on 127.0.0.1 that was free just now."""
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError(f"every port from {PORTS.start} to {PORTS.stop - 1} of 127.0.0.1 is taken")


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


def start_guard(launch: str, folder: str) -> subprocess.Popen[bytes]:
    """Start the guard of a launch; it ends when its standard input is closed.

    Parameters
    ----------
    launch : str
        Number that marks the launch's processes.
    folder : str
        Temporary folder to remove after them.
    """
    return subprocess.Popen(
        [sys.executable, "-I", __file__, launch, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Ctrl-C goes to the whole group of the terminal; the guard has to outlive it.
        start_new_session=True,
    )


def guard(launch: str, folder: str) -> None:
    """Wait until the launching process is gone, then clean up after it."""
    sys.stdin.buffer.read()
    end_all(launch)
    shutil.rmtree(folder, ignore_errors=True)


def _signal(send: Callable[[], None]) -> None:
    try:
        send()
    except psutil.NoSuchProcess:
        return


if __name__ == "__main__":
    guard(*sys.argv[1:])
