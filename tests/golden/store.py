"""The file of golden runs: reading, writing, and saying how a run differs from it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks._report import machine_facts

FILE = Path(__file__).with_name("golden.json")
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


def load() -> dict[str, Any]:
    """What is on file: the kind of machine, and results by case."""
    found: dict[str, Any] = json.loads(FILE.read_text("utf-8"))
    return found


def save(results: dict[str, Any]) -> None:
    """Write all results, with the kind of machine they were made on."""
    text = json.dumps({"machine": machine_kind(), "cases": results}, indent=1, sort_keys=True)
    temporary = FILE.with_suffix(".new")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(FILE)


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
