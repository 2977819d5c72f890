"""Which checkpoint a stage of training goes on from, and whether it may."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerState
from transformers.trainer_utils import get_last_checkpoint

from fedhlm_app.results.runs import write_atomically

_DATA = ("seed", "articles", "head")
"""What stands behind the recipe in an identity."""


def last_checkpoint(folder: Path, identity: list[Any]) -> tuple[str | None, TrainerState]:
    """Find a stage's newest checkpoint, and write down its settings for the next call.

    Parameters
    ----------
    folder : Path
        The stage's; checkpoints in it whose writing was cut short are removed.
    identity : list
        The recipe as a dictionary, and what else decides the steps, as JSON can hold it.

    Returns
    -------
    tuple
        The checkpoint's folder and its state; None and an empty one before the first.

    Raises
    ------
    ValueError
        If it was written with other settings.
    """
    for path in folder.glob("checkpoint-*"):
        if not (path / "trainer_state.json").exists():
            # The state is written last: this one was cut short, and the one before it is there.
            shutil.rmtree(path)
    checkpoint: str | None = get_last_checkpoint(str(folder))  # type: ignore[no-untyped-call]
    state = TrainerState()
    described = folder / "recipe.json"
    if checkpoint is not None:
        state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
        saved = json.loads(described.read_text(encoding="utf-8"))
        if not _same_so_far(saved, identity, state.global_step):
            raise ValueError(
                f"{checkpoint} was written with other settings: {_difference(saved, identity)}; "
                "give the same settings or another folder"
            )
    write_atomically(described, json.dumps(identity) + "\n")
    return checkpoint, state


def _difference(saved: list[Any], asked: list[Any]) -> str:
    """What is not the same in two identities, by name and both values."""
    there, now = (
        {**recipe, **dict(zip(_DATA, rest, strict=False))} for recipe, *rest in (saved, asked)
    )
    return ", ".join(
        f"{name} {there.get(name)} there and {now.get(name)} now"
        for name in {**there, **now}
        if there.get(name) != now.get(name)
    )


def _same_so_far(saved: list[Any], asked: list[Any], steps: int) -> bool:
    """Tell whether the steps done would have been the same under the settings asked for.

    A stage may become shorter or longer while its rate has not begun to fall: up to there, the
    number of steps changes nothing.
    """
    (old, *old_data), (new, *new_data) = saved, asked
    if {**old, "steps": 0} != {**new, "steps": 0} or old_data != new_data:
        return False
    constant = min(old["steps"], new["steps"]) * new["constant_until"]
    return bool(old["steps"] == new["steps"] or steps <= constant)
