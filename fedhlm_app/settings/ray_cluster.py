"""An existing Ray cluster that a simulation joins: which one, and what is asked of its nodes."""

from __future__ import annotations

import math
import os
import re
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fedhlm_app.settings.errors import SettingsError

if TYPE_CHECKING:
    from fedhlm_app.settings.model import Settings

REACH_SECONDS = 5.0
_PLACED = ("cuda", "auto")
"""Devices of which Ray chooses the GPU; one with a number (`cuda:1`) is the user's own choice."""

Nodes = Sequence[tuple[float, float]]
"""CPUs and GPUs of each node of a cluster."""


def joined(environ: Mapping[str, str] | None = None) -> str:
    """Address of the cluster that a simulation joins; empty where it starts its own.

    Parameters
    ----------
    environ : mapping, optional
        Environment, with Ray's own variable; `os.environ` when None.
    """
    found = (os.environ if environ is None else environ).get("RAY_ADDRESS", "").strip()
    return "" if found == "local" else found


def reach(address: str) -> None:
    """Refuse an address where nothing listens: Ray itself tries for minutes.

    Raises
    ------
    SettingsError
        Naming `RAY_ADDRESS`, its value and what is allowed.
    """
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise unfit(
            address, "allowed are host:port, as `ray start --head` prints it, auto and local"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS).close()
    except OSError as error:
        raise unfit(address, f"no Ray cluster answers there ({error})") from None


def unfit(address: str, why: str) -> SettingsError:
    """What is wrong with the cluster at an address."""
    return SettingsError(f"RAY_ADDRESS = {address!r}: {why}; without it a run starts its own Ray")


def is_plain(path: str) -> bool:
    """True where a shell reads a path without quotation marks as the one word that it is."""
    return sys.platform == "win32" or re.search(r"[^\w@%+=:,./-]", path) is None


def check_python() -> None:
    """Refuse a Python that a Ray started by it cannot start in turn.

    Ray starts workers by `bash -c "exec PYTHON ..."` with no quotation marks around PYTHON, the
    `sys.executable` of whoever called `ray.init` (ray/_private/runtime_env/context.py, Ray 2.55):
    a space ends the word there, no worker ever comes, and Ray says so after nine minutes.

    Raises
    ------
    SettingsError
        Naming its path, and what to do.
    """
    if not joined() and not is_plain(sys.executable):
        raise SettingsError(
            f"Ray cannot start {sys.executable!r}: its path holds a space or another sign that a "
            "shell reads; move the virtual environment, or use `fedhlm run`, which goes around this"
        )


def llm_gpus(settings: Settings, gpus: float) -> float:
    """GPUs that the LLM's actor asks Ray for: 1, a half where the small models run on GPUs too.

    Edge servers ask for none: embeddings are all they have of a model.

    Parameters
    ----------
    settings : Settings
        Of the run.
    gpus : float
        GPUs that Ray knows of, all nodes together; none is asked for where there is none.
    """
    if not gpus or not settings.loads_llm or settings.llm_device not in _PLACED:
        return 0.0
    return 0.5 if settings.device in _PLACED else 1.0


def client_resources(settings: Settings, nodes: Nodes) -> tuple[int, float]:
    """CPUs and GPUs of a client process on a cluster: Flower starts as many as fit into it all.

    Parameters
    ----------
    settings : Settings
        Of the run.
    nodes : sequence of (float, float)
        CPUs and GPUs of each node.

    Raises
    ------
    SettingsError
        When the cluster has no CPU, or not the device that the settings name.
    """
    cpus, gpus = sum(int(cpu) for cpu, _ in nodes), sum(gpu for _, gpu in nodes)
    if not cpus:
        raise SettingsError("RAY_ADDRESS: the cluster's nodes offer no CPU for client processes")
    wanted = [("device", settings.device)]
    if settings.loads_llm:
        wanted.append(("llm-device", settings.llm_device))
    for name, device in wanted:
        if device not in ("cpu", *_PLACED) or (device == "cuda" and not gpus):
            raise SettingsError(
                f"setting {name!r} = {device!r}: on the cluster of RAY_ADDRESS, which has "
                f"{gpus:g} GPUs, allowed are cpu, auto and, with GPUs, cuda; Ray chooses which"
            )
    workers = min(settings.workers or cpus, settings.clients)
    each = max(1, min(cpus // workers, max(int(cpu) for cpu, _ in nodes)))
    if settings.device not in _PLACED or not gpus:
        return each, 0.0
    on_one = max(math.ceil((int(cpu) // each or 1) / gpu) for cpu, gpu in nodes if gpu)
    # Ray counts in ten-thousandths, and more than is there is waited for without end.
    left = 1 - llm_gpus(settings, gpus)
    return each, math.floor(left / on_one * 10_000) / 10_000
