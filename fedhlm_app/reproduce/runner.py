"""Makes the pieces of an experiment one after the other; what is there already stays."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedhlm_app.reproduce.drawing import svg
from fedhlm_app.reproduce.page import page, table_json
from fedhlm_app.reproduce.pieces import Experiment, Finding, Options, Tell
from fedhlm_app.results.runs import write_atomically

__all__ = ["reproduce"]


def reproduce(
    experiment: Experiment[Any],
    options: Options,
    out: Path,
    experiments: Mapping[str, Experiment[Any]],
    tell: Tell = lambda words: None,
) -> Path:
    """Make what is missing of an experiment, and the page of the whole folder.

    A piece is `OUT/EXPERIMENT/PIECE.json` and, where it has figures, `PIECE.svg` beside it, both
    whole or not there: a run that is broken off goes on where it was.

    Parameters
    ----------
    experiment : Experiment
    options : Options
    out : Path
        Folder of `results.md` and of a folder for each experiment.
    experiments : mapping of str to Experiment
        All that may be in the folder.
    tell : callable
        Told of every piece.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    ValueError
        Where the folder holds pieces that were made with other options.
    """
    folder = out / experiment.name
    _claim(folder, options)
    missing = [p for p in experiment.pieces if not (folder / f"{p.name}.json").is_file()]
    if len(missing) < len(experiment.pieces):
        tell(f"{len(experiment.pieces) - len(missing)} pieces are there already")
    inputs = experiment.open(options, folder, tell) if missing else None
    began = time.monotonic()
    for done, piece in enumerate(missing):
        spent = time.monotonic() - began
        left = f", about {spent / done * (len(missing) - done) / 60:.0f} min left" if done else ""
        tell(f"{done + 1}/{len(missing)} {piece.name}{left}")
        _write(folder, piece.name, piece.make(inputs))
    path = out / "results.md"
    write_atomically(path, page(out, experiments))
    return path


def _claim(folder: Path, options: Options) -> None:
    """Note what the folder is made with, or refuse one that is made otherwise."""
    path, mine = folder / "options.json", dataclasses.asdict(options)
    # The way to the data is this machine's; what is made of them is read elsewhere.
    if Path(options.data).is_absolute():
        mine["data"] = Path(options.data).name
    if path.is_file():
        other = json.loads(path.read_text("utf-8"))
        for name, value in mine.items():
            if other.get(name) != value:
                raise ValueError(
                    f"--out {folder.parent}: holds pieces made with {name} = {other.get(name)!r}, "
                    f"not {value!r}; choose another folder, or delete {folder}"
                )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(mine, indent=2) + "\n")


def _write(folder: Path, name: str, finding: Finding) -> None:
    if finding.figures:
        write_atomically(folder / f"{name}.svg", svg(finding.figures))
    found = {
        "words": finding.words,
        "table": None if finding.table is None else table_json(finding.table),
        "figures": [dataclasses.asdict(figure) for figure in finding.figures],
    }
    # Last: a piece whose JSON is there is whole.
    write_atomically(folder / f"{name}.json", json.dumps(found, indent=1, allow_nan=False) + "\n")
