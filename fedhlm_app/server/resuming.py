"""Going on with a run: what may differ from the run it was, checked before anything is touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedhlm_app.results.runs import CONFIG, RunFolder
from fedhlm_app.settings import Settings, SettingsError
from fedhlm_app.settings.kept import check_kept
from fedhlm_app.settings.model import DERIVED, PLACES
from fedhlm_app.settings.sources import Scalar

MAY_CHANGE = (
    "rounds", "workers", "token-log", "token-texts", "trackers", "checkpoint", "device",
    "llm-backend", "llm-device", "llm-address", "llm-ca-file", "llm-token-file",
    "llm-timeout", "llm-sessions", "llm-context", "llm-batch-wait-ms", "reproducible",
    "round-timeout", "min-clients", "max-unresolved", "evaluate-every", "evaluate-prompts",
    "fraction-evaluate",
)  # fmt: skip
"""Settings that a run may go on with at another value: how long, where, and with what patience.

A checkpoint holds policies, moments and control variates of the rule, calibration sums, privacy
spent, and what each client keeps. All other settings say what those mean: thresholds are learned
for a pair, its number formats, its data and its verifier; sums of two rules, budgets or shares of
clients asked cannot be added up; noise is accounted for at one scale.
"""


def settings_of(folder: RunFolder) -> dict[str, Scalar]:
    """The settings a run was started, or last resumed, with, by kebab-case key.

    Raises
    ------
    SettingsError
        When the folder is not a run's, or another version's.
    """
    try:
        kept = dict(folder.config()["settings"])
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise SettingsError(
            f"'{folder.path}' is no run folder: its {CONFIG} cannot be read"
        ) from error
    check_kept(kept, folder.path / CONFIG)
    return kept


def check(settings: Settings) -> int:
    """Check that the run in `resume` can go on with these settings; touches nothing.

    Returns
    -------
    int
        Rounds that its checkpoint has done.

    Raises
    ------
    SettingsError
        One line for each setting that may not change: name, value, the run's value.
    CheckpointError
        When the folder has no checkpoint that can be read.
    """
    # Strategies, and with them Flower, take a second to load that other commands are spared.
    from fedhlm_app.server import checkpoint

    folder = RunFolder(Path(settings.resume))
    state, _, _ = checkpoint.load(folder.path)
    done = int(state["round"])
    before = settings.defaults() | settings_of(folder)
    differs = {
        key: value
        for key, value in settings.to_run_config().items()
        if value != before[key] and key not in (*MAY_CHANGE, *PLACES)
    }
    found = [
        f"setting {key!r} = {value!r}: the run in '{folder.path}' has {before[key]!r}, and its "
        "checkpoint stands for nothing else"
        for key, value in differs.items()
    ]
    if found:
        found.append("what may change when a run goes on: " + ", ".join(MAY_CHANGE))
        was = Settings.from_sources(settings_of(folder), {})
        words = {"preset": was.preset, **was.changed()}
        # What followed from the number of rounds would follow from another one now.
        words |= {key: before[key] for key in DERIVED if key in differs}
        found.append(
            "fedhlm run --resume takes up the others by itself; flwr run wants them beside resume: "
            + " ".join(f"{key}={json.dumps(value)}" for key, value in words.items())
        )
    if settings.rounds < done:
        found.append(
            f"setting 'rounds' = {settings.rounds}: the run in '{folder.path}' has done {done}; "
            f"allowed: at least {done}"
        )
    if found:
        raise SettingsError("\n".join(found))
    return done


def finished(settings: Settings) -> dict[str, Any] | None:
    """The summary of a resumed run that has no round left to do; None for one that has to go on.

    Raises
    ------
    SettingsError, CheckpointError
        As `check`.
    """
    done = check(settings)
    summary = RunFolder(Path(settings.resume)).summary()
    ended = summary is not None and summary["rounds"] == done == settings.rounds
    return summary if ended else None
