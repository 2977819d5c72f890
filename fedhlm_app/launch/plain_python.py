"""A Python that Ray can start, where the one here lies in a folder with a space in its name."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from fedhlm_app.settings.ray_cluster import is_plain

SIMULATION = "flwr-simulation"
"""Flower's command that starts Ray; its SuperLink finds it by PATH."""


def scripts_for_ray(folder: Path, scripts: Path) -> list[Path]:
    """Folders of programs, the first one first, by which a simulation's Python has a plain path.

    Parameters
    ----------
    folder : Path
        Of the launch, of a plain path: gets a link to this Python's environment, and a
        `flwr-simulation` that runs by that link.
    scripts : Path
        Where the environment's own programs are.

    Returns
    -------
    list of Path
        `scripts`, behind another folder where its path is not plain.
    """
    if is_plain(sys.executable):
        return [scripts]
    environment, programs = folder / "python", folder / "bin"
    environment.symlink_to(sys.prefix, target_is_directory=True)
    python = environment / os.path.relpath(sys.executable, sys.prefix)
    programs.mkdir()
    simulation = programs / SIMULATION
    simulation.write_text(
        f'#!/bin/sh\nexec {python} {shlex.quote(str(scripts / SIMULATION))} "$@"\n',
        encoding="utf-8",
    )
    simulation.chmod(0o700)
    return [programs, scripts]
