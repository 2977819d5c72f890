"""What FedHLM's pieces are made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedhlm_app.reproduce.pieces import Options, Tell

CLIENTS, CLUSTERS, ROUNDS, TOKENS = 20, 4, 30, 30
"""Section VI-A: 18,000 tokens."""


@dataclass(frozen=True)
class Inputs:
    """Options and a folder for what takes long.

    Attributes
    ----------
    options : Options
    folder : Path
    tell : callable
    """

    options: Options
    folder: Path
    tell: Tell


def setup(options: Options) -> str:
    """What all runs have in common."""
    total = CLIENTS * ROUNDS * TOKENS
    return (
        f"{CLIENTS} clients in {CLUSTERS} clusters, {ROUNDS} rounds, {total:,} tokens a run, "
        f"{options.seeds} seeds, data {options.data}"
    )


def opened(options: Options, folder: Path, tell: Tell) -> Inputs:
    """Get ready."""
    return Inputs(options, folder, tell)
