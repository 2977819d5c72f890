"""Where every benchmark leaves its figures: ``benchmarks/out/NAME.json`` (not in git)."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

OUT = Path(__file__).resolve().parent / "out"

_INSTRUCTIONS = (
    "avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx_vnni",
    "amx_tile", "amx_int8", "amx_bf16", "asimd", "sve", "bf16",
)  # fmt: skip
"""Instruction sets that decide how fast, and with which rounding, matrices are multiplied."""


def machine() -> str:
    """The machine in words: processor, cores available, operating system, Python."""
    facts = machine_facts()
    cores, system, python = facts["cores"], facts["system"], facts["python"]
    return f"{facts['processor']}, {cores} cores, {system}, Python {python}"


def machine_facts() -> dict[str, Any]:
    """What a figure has to be read with: processor, its instruction sets, cores, versions."""
    cpu = _cpuinfo()
    flags = set((cpu.get("flags") or cpu.get("Features", "")).split())
    has_affinity = hasattr(os, "sched_getaffinity")
    return {
        "processor": cpu.get("model name") or platform.processor() or platform.machine(),
        # Virtual machines tend to hide a processor's name, not its family.
        "family": "/".join(cpu.get(key, "?") for key in ("cpu family", "model", "stepping")),
        "instructions": [name for name in _INSTRUCTIONS if name in flags],
        "cores": len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "transformers", "numpy")},
    }


def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first processor; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text().split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def commit() -> str:
    """Commit of the checkout, with ``-dirty`` if files differ from it; ``unknown`` outside git."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=OUT.parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()


def write_report(name: str, figures: dict[str, Any]) -> Path:
    """Write ``benchmarks/out/NAME.json`` with name, machine, commit and figures.

    Parameters
    ----------
    name : str
        File stem, usually the benchmark module's name.
    figures : dict
        Anything JSON can hold; NaN is refused because JSON has none.

    Returns
    -------
    Path
        The file written.
    """
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / f"{name}.json"
    report = {
        "name": name,
        "machine": machine(),
        "facts": machine_facts(),
        "commit": commit(),
        "figures": figures,
    }
    path.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    return path
