"""Where every benchmark leaves its figures: ``benchmarks/out/NAME.json`` (not in git)."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

OUT = Path(__file__).resolve().parent / "out"


def machine() -> str:
    """The machine in words: processor, cores available, operating system, Python."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    python = platform.python_version()
    return f"{processor}, {cores} cores, {platform.system()} {platform.release()}, Python {python}"


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
    report = {"name": name, "machine": machine(), "commit": commit(), "figures": figures}
    path.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    return path
