"""Files of golden runs, one a kind of machine: reading, writing, how a run differs from one."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks._report import machine_facts

FOLDER = Path(__file__).parent
TOLERANCE = 1e-9
"""Of numbers on the machine they were written on, absolute and relative."""
ELSEWHERE = 0.25
"""Of sums on another one, where tokens may flip at ties: share by which they may differ."""

_KIND = ("processor", "family", "instructions", "torch", "transformers")
_SUMS = ("tokens", "bytes/uplink", "bytes/downlink", "bytes_per_token/uplink", "policy/size")


def machine_kind() -> dict[str, Any]:
    """What the last bits of a matrix product depend on."""
    facts = machine_facts()
    return {key: facts[key] for key in _KIND}


def file_of(kind: dict[str, Any], folder: Path = FOLDER) -> Path:
    """Where results of a kind of machine are: one file a processor, whatever its libraries."""
    words = " ".join((kind["processor"], kind["family"], *kind["instructions"])).lower()
    return folder / f"golden-{re.sub(r'[^a-z0-9_]+', '-', words).strip('-')}.json"


def load(kind: dict[str, Any], folder: Path = FOLDER) -> dict[str, Any]:
    """What is on file for a kind of machine, or else for the one most like it.

    Returns
    -------
    dict
        `machine`, the kind it was written on, and `cases`, results by case.
    """

    def likeness(found: dict[str, Any]) -> int:
        return sum(found["machine"][key] == kind[key] for key in _KIND)

    files = sorted(folder.glob("golden-*.json"))
    return max((json.loads(file.read_text("utf-8")) for file in files), key=likeness)


def save(results: dict[str, Any], folder: Path = FOLDER) -> Path:
    """Write all results into the file of this kind of machine, and say which that is."""
    kind = machine_kind()
    text = json.dumps({"machine": kind, "cases": results}, indent=1, sort_keys=True)
    file = file_of(kind, folder)
    temporary = file.with_suffix(".new")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(file)
    return file


def elsewhere(file: dict[str, Any]) -> str:
    """Why no more could be compared with a file, and what to do about it."""
    return (
        f"the nearest file was written on {file['machine']}, and tokens may flip at ties on "
        "another kind of machine; python -m tests.golden --write adds this one"
    )


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Paths and values of everything in a nest of dicts and lists."""
    pairs: Any = ()
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list):
        pairs = enumerate(value)
    else:
        yield path, value
    for key, part in pairs:
        yield from leaves(part, f"{path}/{key}" if path else str(key))


def differences(golden: Any, found: Any, same_machine: bool) -> list[str]:
    """One line for every place at which a result is not as on file.

    Parameters
    ----------
    golden, found : nested dict
        On file, and of now.
    same_machine : bool
        Whether both come from the same kind of machine. Where not, what is left is that the same
        places exist and that the sums are about the same.
    """
    before, now = dict(leaves(golden)), dict(leaves(found))
    lines = [f"{path}: {before[path]!r} is gone" for path in before if path not in now]
    lines += [f"{path}: {now[path]!r} is new" for path in now if path not in before]
    agree = _equal if same_machine else _alike
    for path, value in before.items():
        if path in now and not agree(path, value, now[path]):
            lines.append(f"{path}: {value!r} -> {now[path]!r}")
    return lines


def _equal(path: str, before: Any, now: Any) -> bool:
    if isinstance(before, float) and isinstance(now, int | float):
        return math.isclose(before, now, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return bool(before == now)


def _alike(path: str, before: Any, now: Any) -> bool:
    if not path.endswith(_SUMS):
        return True
    return math.isclose(before, now, rel_tol=ELSEWHERE, abs_tol=ELSEWHERE)
