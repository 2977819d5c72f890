"""A strategy by name: the setting ``strategy`` beside ``edge-rule`` and ``cloud-rule``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

from strategies.cluster_map import ClusterMap
from strategies.fednova import FedNova
from strategies.fedprox import FedProx
from strategies.hierarchical import Hierarchical
from strategies.local_methods import FedAvgSteps, LocalMethod
from strategies.options import MethodOptions, Options, StrategyOptions, check_kinds, split
from strategies.scaffold import Scaffold
from strategies.tiers import RuleSource

METHODS: dict[str, tuple[Callable[..., LocalMethod], tuple[str, ...]]] = {
    "fedavg": (FedAvgSteps, ()),
    "fedprox": (FedProx, ("proximal_mu",)),
    "scaffold": (Scaffold, ("server_learning_rate", "weighting", "max_control")),
    "fednova": (FedNova, ("max_local_steps",)),
}
"""Strategy name to its local method and that method's options."""


def build_method(name: str, **options: Unpack[MethodOptions]) -> LocalMethod:
    """Make the local method of strategy `name`; other methods' options are left out.

    Raises
    ------
    ValueError
        On an unknown name, or an option that is not of its type.
    """
    if name not in METHODS:
        raise ValueError(f"strategy: {name!r}; allowed: {', '.join(METHODS)}")
    check_kinds(options)
    make, own = METHODS[name]
    return make(**{key: value for key, value in options.items() if key in own})


def build_strategy(
    name: str,
    edge_rule: RuleSource = "weighted-mean",
    cloud_rule: RuleSource = "unweighted-mean",
    cluster_map: ClusterMap | None = None,
    **options: Unpack[StrategyOptions],
) -> Hierarchical:
    """Make the strategy `name` with these rules.

    Parameters
    ----------
    name : str
        ``fedavg``, ``fedprox``, ``scaffold`` or ``fednova``.
    edge_rule, cloud_rule : str or callable
    cluster_map : ClusterMap, optional
        By default one cluster.
    options
        Those of the method (see `METHODS`; other methods' options are left out, so that one set
        of settings serves all) and those of `Hierarchical`.

    Raises
    ------
    ValueError
        On an unknown name.
    """
    own, rest = split(options)
    settings: Options = {
        "edge_rule": edge_rule,
        "cloud_rule": cloud_rule,
        "method": build_method(name, **own),
        **rest,
    }
    return Hierarchical(cluster_map, **settings)
