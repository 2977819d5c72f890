"""Which way each causal family of Transformers is read, on a device and at a server.

Run with ``python -m benchmarks.families``; writes ``benchmarks/out/families.json``, and with
``--docs`` the table of ``docs/models.md`` as well. A small random model of each family is tried as
a real one is when it is loaded: on texts of different length, beyond its attention window or
chunk, with tokens taken back, in float32. It has no model pair: the families are what it is about.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks._families import FAMILIES, POSITIONS, family_model
from benchmarks._report import write_report
from clients.decoding.ways import best_ways
from hlm.reading.agreement import ModelRefusedError
from servers.engine.ways import best_way

DOCS = Path(__file__).resolve().parents[1] / "docs" / "models.md"
HEAD = "| family | on a device | when drafts are taken back | at the server |\n|---|---|---|---|\n"
_PLAIN = {
    "one text at a time, with the model's own cache": "plain, own cache",
    "one token at a time, with the model's own cache": "plain, own cache, token by token",
    "every text from its start": "plain, full forward",
}


def tried(family: str) -> dict[str, Any]:
    """How a family is read: ways in words, "refused" with the reason, and processor seconds."""
    model = family_model(family)
    begin = time.process_time()
    try:
        device = best_ways(model, POSITIONS)
        server = best_way(model, POSITIONS)
    except ModelRefusedError as error:
        return {"refused": str(error)}
    return {
        "device": _short(device.lockstep),
        "rollback": _short(device.rollback),
        "server": _short(server.name),
        "device_way": device.lockstep,
        "server_way": server.name,
        "seconds": round(time.process_time() - begin, 2),
    }


def _short(way: str) -> str:
    return _PLAIN.get(way, "fast")


def row(family: str, found: dict[str, Any]) -> str:
    """One line of the table."""
    if "refused" in found:
        return f"| {family} | refused | refused | refused |\n"
    return f"| {family} | {found['device']} | {found['rollback']} | {found['server']} |\n"


def write_table(rows: str) -> None:
    """Put the table into ``docs/models.md``, in the place of the one there."""
    text = DOCS.read_text("utf-8")
    before, _, rest = text.partition(HEAD)
    after = rest[rest.index("\n\n") :] if "\n\n" in rest else "\n"
    DOCS.write_text(before + HEAD + rows.rstrip("\n") + after, "utf-8")


def main() -> None:
    """Try every family."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", action="store_true", help="write the table of docs/models.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    set_verbosity: Any = transformers.logging.set_verbosity_error
    set_verbosity()
    logging.getLogger("hlm.reading.agreement").setLevel(logging.ERROR)
    found = {}
    for family in sorted(FAMILIES, key=str.lower):
        found[family] = tried(family)
        print(row(family, found[family]), end="", flush=True)
    if options.docs:
        write_table("".join(row(family, one) for family, one in found.items()))
    print(write_report("families", {"transformers": transformers.__version__, "families": found}))


if __name__ == "__main__":
    main()
