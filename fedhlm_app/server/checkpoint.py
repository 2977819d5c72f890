"""What a run needs to go on after a crash: one file in its folder, replaced whole each round."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedhlm_app.results.runs import CHECKPOINT, write_atomically
from hlm.state import State, state_from_bytes, state_to_bytes

_VERSION = 4


class CheckpointError(ValueError):
    """There is no checkpoint, or it belongs to another kind of run."""


@dataclass
class Progress:
    """What the server has added up over the rounds so far.

    Attributes
    ----------
    totals : Counter of str
        Every scalar metric, summed over rounds and clients.
    evaluation : dict
        Figures of the last federated evaluation.
    refused : Counter of str
        Refused replies by reason.
    failed : int
        Clients that were asked and gave no answer.
    absent : int
        Clients that were not connected, added up over rounds.
    thresholds : dict of client to float
        As each client last reported its own.
    take_back : list of float
        The last round's counts of drafts, for the rule that takes texts back; none: empty.
    waited : float
        Seconds spent waiting for clients.
    seconds : float
        Wall clock of the run's earlier lives.
    """

    totals: Counter[str] = field(default_factory=Counter)
    evaluation: dict[str, Any] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    absent: int = 0
    thresholds: dict[int, float] = field(default_factory=dict)
    take_back: list[float] = field(default_factory=list)
    waited: float = 0.0
    seconds: float = 0.0


def save(folder: Path, strategy: State, clusters: State, progress: Progress) -> Path:
    """Write the checkpoint atomically and return its path.

    Parameters
    ----------
    folder : Path
        The run's.
    strategy : dict
        Of `Hierarchical.state_dict`: policies, rules, rounds done, what clients keep.
    clusters : dict
        Of `Clusters.state_dict`: cluster of every client, and how it was found.
    progress : Progress
    """
    state = {
        "version": _VERSION,
        "strategy": strategy,
        "clusters": clusters,
        "progress": {
            **vars(progress),
            "totals": dict(progress.totals),
            "refused": dict(progress.refused),
            "thresholds": {str(client): th for client, th in progress.thresholds.items()},
        },
    }
    path = folder / CHECKPOINT
    write_atomically(path, state_to_bytes(state).decode())
    return path


def load(folder: Path) -> tuple[State, State, Progress]:
    """Strategy state, clusters and progress of the folder's checkpoint.

    Raises
    ------
    CheckpointError
        When there is none that can be read, naming the file.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        raise CheckpointError(
            f"'{folder}' has no {CHECKPOINT}; only a run with checkpoint=true that finished a "
            "round has one"
        )
    try:
        state = state_from_bytes(path.read_bytes())
        if state["version"] != _VERSION:
            raise CheckpointError(
                f"{path}: version {state['version']}; allowed: {_VERSION}; end the run with the "
                "FedHLM that began it, or start anew without resume"
            )
        kept = dict(state["progress"])
        kept["totals"], kept["refused"] = Counter(kept["totals"]), Counter(kept["refused"])
        kept["thresholds"] = {int(client): th for client, th in kept.get("thresholds", {}).items()}
        progress = Progress(**kept)
        return state["strategy"], state["clusters"], progress
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: not readable as a checkpoint ({error})") from error
