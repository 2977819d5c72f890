"""Which policy a command routes with: a run's, or one that the command line describes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from clients.policies import POLICIES
from fedhlm_app.cli.run import collect
from fedhlm_app.client.feedback_folder import ServedPolicy, difference, made_with
from fedhlm_app.models.sources import decides_as
from fedhlm_app.results.runs import RunFolder
from fedhlm_app.server import resuming
from fedhlm_app.settings import Settings, SettingsError

RunOption = Annotated[
    Path | None,
    typer.Option("--run", metavar="FOLDER", help="Take models, settings and policy of this run."),
]
ClusterOption = Annotated[
    int | None,
    typer.Option(help="Whose policy, in a run whose clusters have their own; 0 by default."),
]
LlmAddressOption = Annotated[
    str | None,
    typer.Option(help="host:port or URL of `fedhlm serve llm`, instead of an LLM in here."),
]


@dataclass(frozen=True)
class Chosen:
    """What decides which tokens are kept.

    Attributes
    ----------
    settings : Settings
        The run's, where there is one, with what the command line says.
    policy : ServedPolicy
        Keeps or escalates.
    words : str
        Where it is from.
    promise : str
        What is certified of it; empty where nothing is.
    """

    settings: Settings
    policy: ServedPolicy
    words: str
    promise: str = ""


def collect_alone(
    given: Mapping[str, object],
    pairs: list[str],
    base: Mapping[str, bool | int | float | str] | None = None,
) -> Settings:
    """`collect` for a device outside of a run; where it would ask peers, say that it does not."""
    asked = collect(given, pairs, base)
    settings = collect(given, pairs, {**(base or {}), "peer-mode": "off", "average-at": "auto"})
    if asked.peer_mode != settings.peer_mode:
        Console(stderr=True, highlight=False).print(
            "fedhlm: peers answer in a run only; here the LLM decides what they would have decided",
            style="yellow",
            soft_wrap=True,
        )
    return settings


def choose_policy(
    given: dict[str, object], pairs: list[str], run: Path | None, cluster: int | None
) -> Chosen:
    """The policy of a run, or that of the settings.

    Parameters
    ----------
    given : dict
        Settings that have an option of their own; None where it was not given.
    pairs : list of str
        Words of `--set`.
    run : Path or None
        Its folder.
    cluster : int or None
        Whose policy of the run.

    Raises
    ------
    ValueError
        Naming what is wrong.
    """
    threshold = given["initial-threshold"]
    if run is None:
        if cluster is not None:
            raise SettingsError(f"--cluster {cluster}: is about a run; give --run as well")
        settings = collect_alone(given, pairs, {"learning": "none"})
        own = settings.initial_threshold == settings.defaults()["initial-threshold"]
        words = f"threshold {settings.initial_threshold:g}"
        if threshold is None and own:
            words += ", the default (--run takes a learned one)"
        if not POLICIES[settings.policy].learns:
            if threshold is not None:
                raise SettingsError(f"--threshold {threshold}: policy={settings.policy} has none")
            words = f"policy {settings.policy}"
        from fedhlm_app.learning.gradients import initial_policy

        return Chosen(settings, ServedPolicy(initial_policy(settings)), words)
    if threshold is not None:
        raise SettingsError(f"--run and --threshold {threshold}: give one of them")
    folder = RunFolder.existing(run)
    kept = resuming.settings_of(folder)
    settings, theirs = collect_alone(given, pairs, kept), Settings.from_sources(kept, {})
    there, here = (
        {**made_with(one), "slm": decides_as(one.slm), "llm": one.llm} for one in (theirs, settings)
    )
    if differs := difference(there, here):
        raise SettingsError(f"--run '{run}': it has learned for {differs}")
    # Strategies, and with them Flower, take a second to load.
    from fedhlm_app.server.learned import learned_by

    learned = learned_by(folder, theirs, cluster)
    policy = ServedPolicy(learned.arrays, learned.server_round, take_back=learned.take_back)
    words = f"policy {settings.policy}"
    if POLICIES[settings.policy].learns:
        threshold = float(learned.arrays["threshold"][0])
        words = f"threshold {threshold:.4f}" if threshold >= 0 else "no token kept, by the policy"
    rounds = "1 round" if learned.server_round == 1 else f"{learned.server_round} rounds"
    words += f" of {folder.path.name}, {rounds}"
    words += f"; certified on texts like the run's: {learned.promise}" if learned.promise else ""
    return Chosen(settings, policy, words, learned.promise)
