"""What a run has learned, for those who write text with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedhlm_app.learning.gradients import initial_policy
from fedhlm_app.learning.rules import sums_rule
from fedhlm_app.learning.rules.certified import Certified
from fedhlm_app.results.report.verdict import certified
from fedhlm_app.results.runs import RunFolder
from fedhlm_app.server import checkpoint
from fedhlm_app.settings import SettingsError
from hlm.arrays import FloatArray, parted
from hlm.risk import ESCALATE_ALL

if TYPE_CHECKING:
    from fedhlm_app.settings import Settings


@dataclass(frozen=True)
class Learned:
    """A policy of a run.

    Attributes
    ----------
    arrays : dict
        float64 arrays by name.
    server_round : int
        Rounds behind it.
    promise : str
        What is certified of text generated with it; empty where nothing is.
    take_back : list of float
        Counts by which texts are taken back from the LLM; none: empty.
    """

    arrays: dict[str, FloatArray]
    server_round: int
    promise: str
    take_back: list[float]


def learned_by(folder: RunFolder, settings: Settings, cluster: int | None = None) -> Learned:
    """Read a policy from the run's checkpoint.

    Parameters
    ----------
    folder : RunFolder
        Of the run, finished or not.
    settings : Settings
        The run's.
    cluster : int, optional
        Whose policy, in a run whose clusters have policies of their own; 0 by default.

    Raises
    ------
    SettingsError
        When there is no such cluster.
    CheckpointError
        When there is no checkpoint that can be read.
    """
    state, _, progress = checkpoint.load(folder.path)
    tiers, tier = state["tiers"], settings.personalisation
    if tier == "global":
        if cluster is not None:
            raise SettingsError(
                f"cluster = {cluster}: the run has one policy for all (personalisation=global)"
            )
        vector = tiers["policy"]
    else:
        count, cluster = len(tiers["clusters"]), cluster or 0
        if not 0 <= cluster < count:
            raise SettingsError(f"cluster = {cluster}: the run has clusters 0 .. {count - 1}")
        vector = tiers["clusters"][cluster]
    arrays, rule, promise = parted(vector, initial_policy(settings)), sums_rule(settings), ""
    # Thresholds of single clients are certified for each alone, and not for their cluster.
    if (
        isinstance(rule, Certified)
        and rule.sequential
        and tier in ("global", "cluster")
        and arrays["threshold"][0] > ESCALATE_ALL
    ):
        promise = certified(settings.fidelity_budget, rule.sureness)
    return Learned(arrays, int(state["round"]), promise, progress.take_back)
