"""Other packages that are named as ours are: `clients`, `servers` and so on are common names."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

NAMES = ("hlm", "clients", "servers", "strategies", "fedhlm_assets")
OURS = Path(__file__).resolve().parents[1]


def foreign_packages(path: Sequence[str] | None = None) -> list[str]:
    """A sentence about each other package of our names, and what to do.

    Parameters
    ----------
    path : sequence of str, optional
        Folders that Python looks in, `sys.path` by default.
    """
    return [
        f"{name} at {place} is no part of fedhlm, whose own is at {OURS / name}, and Python "
        "may take the one for the other: give fedhlm an environment of its own (python -m venv)"
        for name, place in dict.fromkeys(_found(sys.path if path is None else path))
    ]


def _found(path: Sequence[str]) -> Iterator[tuple[str, Path]]:
    for name in NAMES:
        # Also what is found otherwise than in a folder, as some editable installations are.
        spec = find_spec(name)
        if spec is not None and spec.origin is not None:
            origin = Path(spec.origin).resolve()
            place = origin.parent if origin.name == "__init__.py" else origin.with_suffix("")
            if not _is_ours(place.parent):
                yield name, place
    for folder in map(Path, dict.fromkeys(path)):
        for name in NAMES:
            package = folder / name
            has_one = (package / "__init__.py").is_file() or package.with_suffix(".py").is_file()
            if has_one and not _is_ours(folder):
                yield name, package.resolve()
    # Installed over ours, in one folder: what our own list of files does not have.
    for record in OURS.glob("fedhlm-*.dist-info/RECORD"):
        listed = {line.partition(",")[0] for line in record.read_text("utf-8").splitlines()}
        for name in NAMES:
            for module in (OURS / name).glob("*.py"):
                if f"{name}/{module.name}" not in listed:
                    yield name, module


def _is_ours(folder: Path) -> bool:
    """Whether a folder holds FedHLM: Flower runs a copy of an app beside what is installed."""
    return (folder / "fedhlm_app" / "foreign.py").is_file()
